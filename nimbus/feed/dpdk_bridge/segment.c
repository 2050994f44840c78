/* See segment.h. Every failure is one line; the file is changed only when it is surely ours to change. */
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ATTEMPTS_MAX = 8, STAT_SIZE = 1024, START_FIELD = 19 };
enum verdict { FITS, OTHER, FOREIGN, RETRY };

static int fail(char *reason, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(reason, REASON_SIZE, format, arguments);
    va_end(arguments);
    return -1;
}

int64_t clock_ns(int clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Read a small file of /proc as text; empty when it cannot be had. */
static void read_text(const char *path, char *text, size_t size)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = descriptor < 0 ? 0 : read(descriptor, text, size - 1);

    text[length > 0 ? length : 0] = 0;
    if (descriptor >= 0)
        close(descriptor);
}

/* Field 22 of /proc/self/stat, counted from the closing bracket of the command: clock ticks since boot. */
static int64_t own_start(void)
{
    char text[STAT_SIZE];
    char *word;

    read_text("/proc/self/stat", text, sizeof text);
    word = strrchr(text, ')');
    for (int field = -1; word != NULL && field < START_FIELD; field++)
        word = strchr(word + 1, ' ');
    return word == NULL ? 0 : strtoll(word, NULL, 10);
}

/* The first BOOT_DIGITS digits of the boot's id: ringbuf/process.py. */
static int64_t boot_id(void)
{
    char text[64];
    int64_t number = 0, digits = 0;

    read_text("/proc/sys/kernel/random/boot_id", text, sizeof text);
    for (const char *at = text; *at != 0 && digits < BOOT_DIGITS; at++) {
        const char digit[2] = {*at, 0};
        if (*at == '-')
            continue;
        number = number * 16 + strtol(digit, NULL, 16);
        digits++;
    }
    return number;
}

static int lock_byte(int descriptor, int byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(descriptor, F_OFD_SETLK, &lock);
}

static int64_t slot_size_of(const struct plan *plan)
{
    return ((int64_t)sizeof(struct dpdk_frame) + plan->frame_size + 63) & -64;
}

static int64_t aligned(int64_t at)
{
    return (at + SEGMENT_AREA_ALIGN - 1) & -SEGMENT_AREA_ALIGN;
}

static int64_t ring_size_of(const struct plan *plan)
{
    return (RING_HEADER_SIZE + plan->slots * slot_size_of(plan) + 63) & -64;
}

static int64_t bridge_at(void)
{
    return aligned(SEGMENT_AREAS_AT);
}

static int64_t ring_at(void)
{
    return aligned(bridge_at() + (int64_t)sizeof(struct dpdk_bridge));
}

static int64_t end_of(const struct plan *plan)
{
    return ring_at() + ring_size_of(plan);
}

static int map(struct segment *segment, int descriptor, int64_t size)
{
    void *base = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor, 0);

    if (base == MAP_FAILED)
        return -1;
    segment->descriptor = descriptor;
    segment->base = base;
    segment->size = size;
    return 0;
}

/* Point into the mapping; the header lies at its start, the areas where the directory says. */
static void point(struct segment *segment, int64_t bridge, int64_t ring)
{
    segment->bridge = (struct dpdk_bridge *)(segment->base + bridge);
    segment->ring = segment->base + ring;
    segment->slots = segment->ring + RING_HEADER_SIZE;
    segment->mask = *ring_word(segment, RING_MASK_AT);
    segment->slot_size = *ring_word(segment, RING_RECORD_SIZE_AT);
}

/* Begin a generation: our process in the header, indexes by the rule of ringbuf.spsc.recover_producer. */
static void take_over(struct segment *segment, const struct plan *plan)
{
    struct segment_header *header = (struct segment_header *)segment->base;
    struct dpdk_bridge *bridge = segment->bridge;
    int64_t generation = bridge->generation + 1;
    int64_t tail = __atomic_load_n(ring_word(segment, RING_TAIL_AT), __ATOMIC_RELAXED);
    /* Pairs with the reader's release in pop(): the slots below it are free. */
    int64_t head = __atomic_load_n(ring_word(segment, RING_HEAD_AT), __ATOMIC_ACQUIRE);

    *ring_word(segment, RING_TAIL_OWN_AT) = tail; /* the last bridge may have died between its two stores */
    *ring_word(segment, RING_HEAD_CACHE_AT) = head;
    bridge->received = tail + *ring_word(segment, RING_REFUSED_AT); /* and before it had counted */
    bridge->frame_size = plan->frame_size;
    bridge->lossless = plan->lossless;
    bridge->ports = plan->ports;
    bridge->queues = plan->queues;
    bridge->started_ns = clock_ns(CLOCK_REALTIME);
    bridge->state = BRIDGE_STARTING;
    beat(segment, clock_ns(CLOCK_MONOTONIC));
    header->owner_pid = getpid();
    header->owner_start = own_start();
    header->owner_boot = boot_id();
    header->epoch = generation;
    /* Pairs with the reader's acquire: the words above are those of this generation. */
    __atomic_store_n(&bridge->generation, generation, __ATOMIC_RELEASE);
}

/* Fill a new file: header, directory, an empty ring. */
static void fill(struct segment *segment, const struct plan *plan)
{
    struct segment_header *header = (struct segment_header *)segment->base;
    struct area *areas = (struct area *)(header + 1);

    *header = (struct segment_header){
        .magic = SEGMENT_MAGIC,
        .header_version = SEGMENT_HEADER_VERSION,
        .layout_version = DPDK_LAYOUT_VERSION,
        .size = segment->size,
        .used = end_of(plan),
        .area_count = 2,
    };
    areas[0] = (struct area){.name = BRIDGE_AREA, .offset = bridge_at(), .size = sizeof(struct dpdk_bridge)};
    areas[1] = (struct area){.name = RING_AREA, .offset = ring_at(), .size = ring_size_of(plan)};
    segment->ring = segment->base + ring_at();
    *ring_word(segment, RING_MASK_AT) = plan->slots - 1;
    *ring_word(segment, RING_RECORD_SIZE_AT) = slot_size_of(plan);
    point(segment, bridge_at(), ring_at());
    take_over(segment, plan);
}

/* Make the file under another name, locked and complete, then give it its own: by link, which fails when the
 * name is taken (returns RETRY), or by rename over the one that is to be replaced. Returns 0, -1, RETRY. */
static int create(struct segment *segment, const struct plan *plan, int replace, char *reason)
{
    char building[PATH_MAX];
    int64_t page = sysconf(_SC_PAGESIZE), size = (end_of(plan) + page - 1) / page * page;
    int descriptor, error = 0;

    if (snprintf(building, sizeof building, "%s.%d.creating", plan->path, getpid()) >= (int)sizeof building)
        return fail(reason, "%s: the name is too long", plan->path);
    unlink(building); /* of a process that had our number and died here */
    descriptor = open(building, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (descriptor < 0)
        return fail(reason, "%s: cannot create: %s", plan->path, strerror(errno));
    error = posix_fallocate(descriptor, 0, size); /* a full disk is an error here, not a SIGBUS later */
    if (error == 0 && (lock_byte(descriptor, LOCK_BRIDGE) < 0 || map(segment, descriptor, size) < 0))
        error = errno;
    if (error == 0) {
        fill(segment, plan);
        if ((replace ? rename(building, plan->path) : link(building, plan->path)) < 0)
            error = errno;
        else if (replace)
            return 0;
    }
    unlink(building);
    if (error == 0)
        return 0;
    if (segment->base != NULL)
        munmap(segment->base, (size_t)segment->size);
    segment->base = NULL;
    close(descriptor);
    if (error == EEXIST)
        return RETRY;
    return fail(reason, "%s: cannot reserve %lld bytes: %s", plan->path, (long long)size, strerror(error));
}

/* Find the two areas in the directory; 0 where one is missing, lies outside or is too short. */
static void find_areas(const struct segment *segment, int64_t *bridge, int64_t *ring, int64_t *ring_size)
{
    const struct segment_header *header = (const struct segment_header *)segment->base;
    const struct area *areas = (const struct area *)(header + 1);

    *bridge = *ring = *ring_size = 0;
    for (int64_t k = 0; k < header->area_count && k < SEGMENT_AREAS_MAX; k++) {
        int64_t at = areas[k].offset, size = areas[k].size;
        if (at < SEGMENT_AREAS_AT || at % SEGMENT_AREA_ALIGN != 0 || size < 0 || size > segment->size - at)
            continue;
        if (strncmp(areas[k].name, BRIDGE_AREA, sizeof areas[k].name) == 0
            && size >= (int64_t)sizeof(struct dpdk_bridge))
            *bridge = at;
        if (strncmp(areas[k].name, RING_AREA, sizeof areas[k].name) == 0 && size >= RING_HEADER_SIZE) {
            *ring = at;
            *ring_size = size;
        }
    }
}

/* Say whether the mapped file is a ring of this plan (FITS), another bridge's (OTHER), or none (FOREIGN). */
static enum verdict judge(struct segment *segment, const struct plan *plan, char *reason)
{
    const struct segment_header *header = (const struct segment_header *)segment->base;
    int64_t bridge, ring, ring_size, used;

    find_areas(segment, &bridge, &ring, &ring_size);
    if (bridge == 0 || ring == 0) {
        fail(reason, "%s: exists already and is a segment without a DPDK ring", plan->path);
        return FOREIGN;
    }
    if (header->layout_version != DPDK_LAYOUT_VERSION) {
        fail(reason, "%s: replaced a ring of layout version %lld", plan->path,
             (long long)header->layout_version);
        return OTHER;
    }
    point(segment, bridge, ring);
    if (segment->mask != plan->slots - 1 || segment->slot_size != slot_size_of(plan)
        || segment->bridge->frame_size != plan->frame_size) {
        fail(reason, "%s: replaced a ring of %lld frames of %lld bytes", plan->path,
             (long long)(segment->mask + 1), (long long)segment->bridge->frame_size);
        return OTHER;
    }
    used = *ring_word(segment, RING_TAIL_AT) - *ring_word(segment, RING_HEAD_AT);
    if (ring_size < ring_size_of(plan) || used < 0 || used > plan->slots) {
        fail(reason, "%s: replaced a damaged ring", plan->path);
        return OTHER;
    }
    return FITS;
}

/* Lock and map the file that has the name. FITS: it is mapped and locked; otherwise nothing is held. */
static enum verdict inspect(struct segment *segment, const struct plan *plan, int descriptor, char *reason)
{
    struct segment_header header = {0};
    struct stat mine, named;
    ssize_t length = pread(descriptor, &header, sizeof header, 0);
    enum verdict verdict = FOREIGN;

    if (length != sizeof header || header.magic != SEGMENT_MAGIC)
        fail(reason, "%s: exists already and is not a segment of ours", plan->path);
    else if (header.header_version != SEGMENT_HEADER_VERSION)
        fail(reason, "%s: exists already, header version %lld, expected %lld", plan->path,
             (long long)header.header_version, (long long)SEGMENT_HEADER_VERSION);
    else if (lock_byte(descriptor, LOCK_BRIDGE) < 0)
        fail(reason, "%s: another bridge, process %lld, writes to it", plan->path,
             (long long)header.owner_pid);
    else if (fstat(descriptor, &mine) < 0 || stat(plan->path, &named) < 0 || mine.st_ino != named.st_ino)
        verdict = RETRY; /* removed or replaced since it was opened */
    else if (mine.st_size != header.size || header.size < SEGMENT_AREAS_AT)
        fail(reason, "%s: exists already and is cut", plan->path);
    else if (map(segment, descriptor, header.size) < 0)
        fail(reason, "%s: cannot map: %s", plan->path, strerror(errno));
    else
        verdict = judge(segment, plan, reason);
    if (verdict != FITS && segment->base != NULL) {
        munmap(segment->base, (size_t)segment->size);
        segment->base = NULL;
    }
    return verdict;
}

int segment_open(struct segment *segment, const struct plan *plan, char note[REASON_SIZE])
{
    for (int attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
        int descriptor, result;
        enum verdict verdict;

        note[0] = 0;
        *segment = (struct segment){.descriptor = -1};
        descriptor = open(plan->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (descriptor < 0 && errno != ENOENT)
            return fail(note, "%s: cannot open: %s", plan->path, strerror(errno));
        if (descriptor < 0) {
            result = create(segment, plan, 0, note);
            if (result == RETRY)
                continue;
            return result;
        }
        verdict = inspect(segment, plan, descriptor, note);
        if (verdict == FITS) {
            take_over(segment, plan);
            return 0;
        }
        result = verdict == OTHER ? create(segment, plan, 1, note) : -1;
        close(descriptor); /* and its lock, now that the new file has the name */
        if (verdict != RETRY)
            return result;
    }
    return fail(note, "%s: is created and removed again and again", plan->path);
}

void segment_close(struct segment *segment)
{
    __atomic_store_n(&segment->bridge->state, BRIDGE_STOPPED, __ATOMIC_RELEASE);
    munmap(segment->base, (size_t)segment->size);
    close(segment->descriptor);
}
