/* The segment that bridge and reader share. Generated from nimbus/feed/dpdk_layout.py and ringbuf by
 * `python -m nimbus.feed.dpdk_layout`: do not edit. A test compares the two, and the compiler checks that
 * its structs lie as the tables say. */
#ifndef CONTRAFUSION_DPDK_LAYOUT_H
#define CONTRAFUSION_DPDK_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define SEGMENT_MAGIC INT64_C(5135602507301865027)
#define SEGMENT_HEADER_VERSION INT64_C(1)
#define SEGMENT_AREAS_MAX INT64_C(510)
#define SEGMENT_AREAS_AT INT64_C(32768)
#define SEGMENT_AREA_ALIGN INT64_C(128)
#define BOOT_DIGITS INT64_C(15)
#define DPDK_LAYOUT_VERSION INT64_C(1)
#define BRIDGE_STARTING INT64_C(0)
#define BRIDGE_POLLING INT64_C(1)
#define BRIDGE_STOPPED INT64_C(2)
#define FRAME_SIZE_DEFAULT INT64_C(1536)
#define FRAME_SIZE_MIN INT64_C(64)
#define FRAME_SIZE_MAX INT64_C(16352)
#define SLOTS_DEFAULT INT64_C(65536)
#define SLOTS_MAX INT64_C(16777216)
#define RING_HEADER_SIZE INT64_C(384)
#define RING_TAIL_AT INT64_C(0)
#define RING_TAIL_OWN_AT INT64_C(272)
#define RING_HEAD_AT INT64_C(128)
#define RING_HEAD_CACHE_AT INT64_C(256)
#define RING_MASK_AT INT64_C(64)
#define RING_RECORD_SIZE_AT INT64_C(72)
#define RING_REFUSED_AT INT64_C(264)
#define SEGMENT_DEFAULT "/dev/shm/contrafusion-dpdk"
#define BRIDGE_AREA "dpdk.bridge"
#define RING_AREA "dpdk.frames"

struct segment_header {
    int64_t magic; /* MAGIC */
    int64_t header_version; /* HEADER_VERSION: how header and directory are laid out */
    int64_t layout_version; /* how the areas are laid out (the application's number) */
    int64_t size; /* bytes of the whole segment */
    int64_t epoch; /* run epoch of the owner */
    int64_t owner_pid; /* process that created the segment */
    int64_t owner_start; /* its start, clock ticks since boot: a re-used pid does not match */
    int64_t owner_boot; /* the boot it started in: ringbuf/process.py */
    int64_t used; /* bytes handed out so far, header included */
    int64_t area_count; /* entries of the directory in use */
    int64_t pad[6]; /* zero */
};
_Static_assert(sizeof(struct segment_header) == 128, "segment_header");
_Static_assert(offsetof(struct segment_header, magic) == 0, "segment_header.magic");
_Static_assert(offsetof(struct segment_header, header_version) == 8, "segment_header.header_version");
_Static_assert(offsetof(struct segment_header, layout_version) == 16, "segment_header.layout_version");
_Static_assert(offsetof(struct segment_header, size) == 24, "segment_header.size");
_Static_assert(offsetof(struct segment_header, epoch) == 32, "segment_header.epoch");
_Static_assert(offsetof(struct segment_header, owner_pid) == 40, "segment_header.owner_pid");
_Static_assert(offsetof(struct segment_header, owner_start) == 48, "segment_header.owner_start");
_Static_assert(offsetof(struct segment_header, owner_boot) == 56, "segment_header.owner_boot");
_Static_assert(offsetof(struct segment_header, used) == 64, "segment_header.used");
_Static_assert(offsetof(struct segment_header, area_count) == 72, "segment_header.area_count");
_Static_assert(offsetof(struct segment_header, pad) == 80, "segment_header.pad");

struct area {
    char name[48]; /* ASCII, padded with zeros */
    int64_t offset; /* bytes from the start of the segment */
    int64_t size; /* bytes, a multiple of 64 */
};
_Static_assert(sizeof(struct area) == 64, "area");
_Static_assert(offsetof(struct area, name) == 0, "area.name");
_Static_assert(offsetof(struct area, offset) == 48, "area.offset");
_Static_assert(offsetof(struct area, size) == 56, "area.size");

struct dpdk_bridge {
    int64_t generation; /* bridges that have had this ring, the present one included; written last */
    int64_t frame_size; /* bytes kept of a frame */
    int64_t lossless; /* 1 = a full ring makes the bridge wait, 0 = it drops */
    int64_t ports; /* ports polled */
    int64_t queues; /* receive queues of each */
    int64_t started_ns; /* Unix time at which this bridge took the ring */
    int64_t state; /* BRIDGE_* */
    int64_t pad0[9]; /* zero */
    int64_t heartbeat_ns; /* CLOCK_MONOTONIC; moves while the polling thread lives */
    int64_t received; /* frames the ports gave; written = the ring's tail, dropped = its refused */
    int64_t oversized; /* of those written: frames longer than frame_size, cut */
    int64_t pad1[13]; /* zero */
    int64_t rx_missed; /* frames the cards dropped because their queues were full (statistics thread) */
    int64_t rx_errors; /* frames the cards found damaged */
    int64_t rx_nombuf; /* frames lost because buffers were short */
    int64_t pad2[13]; /* zero */
};
_Static_assert(sizeof(struct dpdk_bridge) == 384, "dpdk_bridge");
_Static_assert(offsetof(struct dpdk_bridge, generation) == 0, "dpdk_bridge.generation");
_Static_assert(offsetof(struct dpdk_bridge, frame_size) == 8, "dpdk_bridge.frame_size");
_Static_assert(offsetof(struct dpdk_bridge, lossless) == 16, "dpdk_bridge.lossless");
_Static_assert(offsetof(struct dpdk_bridge, ports) == 24, "dpdk_bridge.ports");
_Static_assert(offsetof(struct dpdk_bridge, queues) == 32, "dpdk_bridge.queues");
_Static_assert(offsetof(struct dpdk_bridge, started_ns) == 40, "dpdk_bridge.started_ns");
_Static_assert(offsetof(struct dpdk_bridge, state) == 48, "dpdk_bridge.state");
_Static_assert(offsetof(struct dpdk_bridge, pad0) == 56, "dpdk_bridge.pad0");
_Static_assert(offsetof(struct dpdk_bridge, heartbeat_ns) == 128, "dpdk_bridge.heartbeat_ns");
_Static_assert(offsetof(struct dpdk_bridge, received) == 136, "dpdk_bridge.received");
_Static_assert(offsetof(struct dpdk_bridge, oversized) == 144, "dpdk_bridge.oversized");
_Static_assert(offsetof(struct dpdk_bridge, pad1) == 152, "dpdk_bridge.pad1");
_Static_assert(offsetof(struct dpdk_bridge, rx_missed) == 256, "dpdk_bridge.rx_missed");
_Static_assert(offsetof(struct dpdk_bridge, rx_errors) == 264, "dpdk_bridge.rx_errors");
_Static_assert(offsetof(struct dpdk_bridge, rx_nombuf) == 272, "dpdk_bridge.rx_nombuf");
_Static_assert(offsetof(struct dpdk_bridge, pad2) == 280, "dpdk_bridge.pad2");

struct dpdk_frame {
    int64_t recv_ns; /* Unix time at which its burst was received */
    uint32_t size; /* bytes kept */
    uint32_t wire_size; /* bytes it had */
    uint16_t port; /* port it came from */
    uint16_t queue; /* receive queue of the port */
    uint32_t pad; /* zero */
    int64_t pad2; /* zero */
};
_Static_assert(sizeof(struct dpdk_frame) == 32, "dpdk_frame");
_Static_assert(offsetof(struct dpdk_frame, recv_ns) == 0, "dpdk_frame.recv_ns");
_Static_assert(offsetof(struct dpdk_frame, size) == 8, "dpdk_frame.size");
_Static_assert(offsetof(struct dpdk_frame, wire_size) == 12, "dpdk_frame.wire_size");
_Static_assert(offsetof(struct dpdk_frame, port) == 16, "dpdk_frame.port");
_Static_assert(offsetof(struct dpdk_frame, queue) == 18, "dpdk_frame.queue");
_Static_assert(offsetof(struct dpdk_frame, pad) == 20, "dpdk_frame.pad");
_Static_assert(offsetof(struct dpdk_frame, pad2) == 24, "dpdk_frame.pad2");

#endif
