/* The bridge's side of the segment: create it, take it over from a dead bridge, and produce into its ring.
 *
 * The ring is ringbuf.spsc: the indexes in memory are the truth and only grow, the cached ones are guesses.
 * One bridge at a time: it holds a lock on byte LOCK_BRIDGE of the file, which the system gives back
 * however the bridge ends. The reader holds byte LOCK_READER. Nothing here knows of DPDK.
 */
#ifndef CONTRAFUSION_SEGMENT_H
#define CONTRAFUSION_SEGMENT_H

#include <limits.h>

#include "layout.h"

enum { LOCK_BRIDGE = 0, LOCK_READER = 1 };
enum { REASON_SIZE = PATH_MAX + 256 };

struct plan {
    const char *path;
    int64_t slots;      /* frames the ring holds, a power of two */
    int64_t frame_size; /* bytes kept of a frame */
    int64_t lossless;
    int64_t ports;
    int64_t queues;
};

struct segment {
    int descriptor; /* holds the lock */
    uint8_t *base;
    int64_t size;
    struct dpdk_bridge *bridge;
    uint8_t *ring;
    uint8_t *slots;
    int64_t mask;
    int64_t slot_size;
};

/* Create the segment, or take over the one that a dead bridge left; a ring of other sizes is replaced by a
 * new file of the name. Returns 0, and what is worth telling in note (empty = nothing), or -1 and the reason
 * there. */
int segment_open(struct segment *segment, const struct plan *plan, char note[REASON_SIZE]);

/* Say that the bridge has stopped and let go of the segment; the file stays, with what lies in the ring. */
void segment_close(struct segment *segment);

int64_t clock_ns(int clock);

static inline int64_t *ring_word(const struct segment *segment, int64_t at)
{
    return (int64_t *)(segment->ring + at);
}

/* Return how many slots may be filled now, at most limit. */
static inline int64_t ring_room(const struct segment *segment, int64_t limit)
{
    int64_t tail = *ring_word(segment, RING_TAIL_OWN_AT), capacity = segment->mask + 1;
    int64_t room = capacity - (tail - *ring_word(segment, RING_HEAD_CACHE_AT));

    if (room < limit) {
        /* Pairs with the reader's release in pop(): the slots are free again. */
        int64_t head = __atomic_load_n(ring_word(segment, RING_HEAD_AT), __ATOMIC_ACQUIRE);
        *ring_word(segment, RING_HEAD_CACHE_AT) = head;
        room = capacity - (tail - head);
    }
    return room < limit ? room : limit;
}

/* Return the index-th free slot, index below what ring_room() granted. */
static inline struct dpdk_frame *ring_slot(const struct segment *segment, int64_t index)
{
    int64_t at = (*ring_word(segment, RING_TAIL_OWN_AT) + index) & segment->mask;
    return (struct dpdk_frame *)(segment->slots + at * segment->slot_size);
}

/* Make the next count slots visible to the reader with one store. */
static inline void ring_publish(const struct segment *segment, int64_t count)
{
    int64_t tail = *ring_word(segment, RING_TAIL_OWN_AT) + count;

    /* Pairs with the reader's acquire in front(): the frames are visible. */
    __atomic_store_n(ring_word(segment, RING_TAIL_AT), tail, __ATOMIC_RELEASE);
    *ring_word(segment, RING_TAIL_OWN_AT) = tail;
}

/* Add to a word that this thread alone writes and others read. */
static inline void count_up(int64_t *word, int64_t by)
{
    __atomic_store_n(word, *word + by, __ATOMIC_RELAXED);
}

/* Count frames that met a full ring. */
static inline void ring_refuse(const struct segment *segment, int64_t count)
{
    count_up(ring_word(segment, RING_REFUSED_AT), count);
}

/* Show that the polling thread lives. */
static inline void beat(const struct segment *segment, int64_t monotonic_ns)
{
    __atomic_store_n(&segment->bridge->heartbeat_ns, monotonic_ns, __ATOMIC_RELAXED);
}

#endif
