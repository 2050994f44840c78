/* contrafusion-dpdk-bridge: frames from DPDK ports into the ring of a shared segment.
 *
 * A process of its own: DPDK takes over signals, threads and exit, and a driver's fault must not end the
 * trader. The main thread polls every queue of every port in turn and publishes each burst with one store;
 * a second thread reads the cards' statistics, which may take long. Both sides may be killed and started
 * again at any time: segment.h.
 */
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_memcpy.h>
#include <rte_pause.h>

#include "options.h"
#include "segment.h"

enum {
    BURST_MAX = 32,
    PORTS_MAX = 8,
    DESCRIPTORS = 1024,
    POOL_SPARE = 8192,
    POOL_CACHE = 256,
    BEAT_MASK = 255,          /* the heartbeat moves once in so many turns, and in each wait */
    STATISTICS_US = 100000,
    MTU_OVERHEAD = 14 + 2 * 4 /* Ethernet header and two VLAN tags */
};

struct bridge {
    struct segment segment;
    uint16_t ports[PORTS_MAX];
    uint16_t port_count;
    uint16_t queue_count;
    int lossless;
    uint32_t frame_size;
    struct rte_mempool *pool;
    int64_t base_missed, base_errors, base_nombuf; /* what the bridges before this one had counted */
};

static volatile sig_atomic_t stopping;

static void on_signal(int number)
{
    (void)number;
    stopping = 1;
}

/* ---------------------------------------------------------------- ports */

/* Choose the ports: those of the list, or all there are. */
static int choose_ports(struct bridge *bridge, const char *list)
{
    char text[PATH_MAX];
    uint16_t port;

    if (rte_eth_dev_count_avail() == 0)
        return complain("no port: bind a card to a DPDK driver, or give a --vdev behind --");
    if (list == NULL) {
        RTE_ETH_FOREACH_DEV(port) {
            if (bridge->port_count < PORTS_MAX)
                bridge->ports[bridge->port_count++] = port;
        }
        return DONE;
    }
    snprintf(text, sizeof text, "%s", list);
    for (char *rest = text, *word; (word = strsep(&rest, ",")) != NULL;) {
        int64_t value = number_in(word, 0, RTE_MAX_ETHPORTS - 1);
        if (value < 0 || !rte_eth_dev_is_valid_port((uint16_t)value))
            return complain("--ports %s: no port %s, there are %d", list, word, rte_eth_dev_count_avail());
        if (bridge->port_count == PORTS_MAX)
            return complain("--ports %s: at most %d ports", list, PORTS_MAX);
        bridge->ports[bridge->port_count++] = (uint16_t)value;
    }
    return DONE;
}

/* Take every frame of the groups, or, where a driver cannot, every frame. */
static void open_ears(uint16_t port)
{
    if (rte_eth_allmulticast_enable(port) != 0)
        (void)rte_eth_promiscuous_enable(port);
}

/* The largest MTU of a device; some name only the longest frame. */
static uint32_t mtu_limit(const struct rte_eth_dev_info *info)
{
    return info->max_mtu != UINT16_MAX ? info->max_mtu
                                       : info->max_rx_pktlen - RTE_ETHER_HDR_LEN - RTE_ETHER_CRC_LEN;
}

/* Configure a port for receiving; it is started when the segment stands. */
static int set_up_port(struct bridge *bridge, uint16_t port)
{
    struct rte_eth_conf conf = {0};
    struct rte_eth_dev_info info;
    uint16_t descriptors = DESCRIPTORS, unused = DESCRIPTORS;
    int socket = rte_eth_dev_socket_id(port), status = rte_eth_dev_info_get(port, &info);

    if (status == 0 && bridge->queue_count > info.max_rx_queues)
        return complain("port %u: has %u receive queues, --queues asks for %u", port, info.max_rx_queues,
                        bridge->queue_count);
    if (bridge->queue_count > 1 && info.flow_type_rss_offloads != 0) {
        conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
        conf.rx_adv_conf.rss_conf.rss_hf = (RTE_ETH_RSS_IP | RTE_ETH_RSS_UDP) & info.flow_type_rss_offloads;
    }
    if (bridge->frame_size > FRAME_SIZE_DEFAULT)
        conf.rxmode.mtu = RTE_MIN(bridge->frame_size - MTU_OVERHEAD, mtu_limit(&info));
    if (status == 0)
        status = rte_eth_dev_configure(port, bridge->queue_count, 1, &conf);
    if (status == 0)
        status = rte_eth_dev_adjust_nb_rx_tx_desc(port, &descriptors, &unused);
    for (uint16_t queue = 0; status == 0 && queue < bridge->queue_count; queue++)
        status = rte_eth_rx_queue_setup(port, queue, descriptors, (unsigned int)socket, NULL, bridge->pool);
    if (status == 0) /* some drivers insist on one */
        status = rte_eth_tx_queue_setup(port, 0, unused, (unsigned int)socket, NULL);
    if (status != 0)
        return complain("port %u (%s): cannot be set up: %s", port, info.driver_name, rte_strerror(-status));
    return DONE;
}

static int set_up_ports(struct bridge *bridge)
{
    unsigned int count = POOL_SPARE + (unsigned int)bridge->port_count * bridge->queue_count * DESCRIPTORS;
    uint32_t room = RTE_MAX(bridge->frame_size, (uint32_t)RTE_MBUF_DEFAULT_DATAROOM) + RTE_PKTMBUF_HEADROOM;

    bridge->pool = rte_pktmbuf_pool_create("bridge", count, POOL_CACHE, 0, (uint16_t)room,
                                           (int)rte_socket_id());
    if (bridge->pool == NULL)
        return complain("no memory for %u buffers of %u bytes: %s", count, room, rte_strerror(rte_errno));
    for (uint16_t k = 0; k < bridge->port_count; k++)
        if (set_up_port(bridge, bridge->ports[k]) != DONE)
            return FAILED;
    return DONE;
}

static int start_ports(struct bridge *bridge)
{
    for (uint16_t k = 0; k < bridge->port_count; k++) {
        int status = rte_eth_dev_start(bridge->ports[k]);
        if (status != 0)
            return complain("port %u: does not start: %s", bridge->ports[k], rte_strerror(-status));
        open_ears(bridge->ports[k]);
    }
    return DONE;
}

/* ---------------------------------------------------------------- polling */

/* Copy a frame, which may lie in several buffers, and cut what is too long. */
static void write_frame(const struct bridge *bridge, struct dpdk_frame *frame, const struct rte_mbuf *packet,
                        uint16_t port, uint16_t queue, int64_t now_ns)
{
    uint8_t *bytes = (uint8_t *)(frame + 1);
    uint32_t size = 0;

    for (const struct rte_mbuf *part = packet; part != NULL && size < bridge->frame_size; part = part->next) {
        uint32_t fit = RTE_MIN((uint32_t)part->data_len, bridge->frame_size - size);
        rte_memcpy(bytes + size, rte_pktmbuf_mtod(part, const void *), fit);
        size += fit;
    }
    *frame = (struct dpdk_frame){
        .recv_ns = now_ns, .size = size, .wire_size = packet->pkt_len, .port = port, .queue = queue,
    };
    if (size < packet->pkt_len)
        count_up(&bridge->segment.bridge->oversized, 1);
}

/* Write a burst and publish it at once, as far as there is room; wait or drop for the rest. */
static void hand_over(const struct bridge *bridge, struct rte_mbuf **burst, uint16_t count, uint16_t port,
                      uint16_t queue)
{
    const struct segment *segment = &bridge->segment;
    int64_t now_ns = clock_ns(CLOCK_REALTIME), done = 0;

    for (uint16_t k = 0; k < count; k++)
        rte_prefetch0(rte_pktmbuf_mtod(burst[k], const void *));
    while (done < count) {
        int64_t fit = ring_room(segment, count - done);
        if (fit == 0) {
            if (!bridge->lossless || stopping)
                break;
            beat(segment, clock_ns(CLOCK_MONOTONIC));
            rte_pause();
            continue;
        }
        for (int64_t k = 0; k < fit; k++)
            write_frame(bridge, ring_slot(segment, k), burst[done + k], port, queue, now_ns);
        ring_publish(segment, fit);
        done += fit;
    }
    if (done < count)
        ring_refuse(segment, count - done);
    count_up(&segment->bridge->received, count);
    rte_pktmbuf_free_bulk(burst, count);
}

static void poll_ports(const struct bridge *bridge)
{
    struct rte_mbuf *burst[BURST_MAX];

    for (uint64_t turn = 0; !stopping; turn++) {
        uint32_t found = 0;
        for (uint16_t k = 0; k < bridge->port_count; k++)
            for (uint16_t queue = 0; queue < bridge->queue_count; queue++) {
                uint16_t count = rte_eth_rx_burst(bridge->ports[k], queue, burst, BURST_MAX);
                if (count > 0)
                    hand_over(bridge, burst, count, bridge->ports[k], queue);
                found += count;
            }
        if ((turn & BEAT_MASK) == 0)
            beat(&bridge->segment, clock_ns(CLOCK_MONOTONIC));
        if (found == 0)
            rte_pause();
    }
}

/* ---------------------------------------------------------------- statistics */

/* Add the cards' counters, which begin at 0 with each bridge, to those of the bridges before. */
static void read_statistics(const struct bridge *bridge)
{
    struct dpdk_bridge *words = bridge->segment.bridge;
    int64_t missed = bridge->base_missed, errors = bridge->base_errors, nombuf = bridge->base_nombuf;

    for (uint16_t k = 0; k < bridge->port_count; k++) {
        struct rte_eth_stats stats;
        if (rte_eth_stats_get(bridge->ports[k], &stats) != 0)
            continue;
        missed += (int64_t)stats.imissed;
        errors += (int64_t)stats.ierrors;
        nombuf += (int64_t)stats.rx_nombuf;
    }
    __atomic_store_n(&words->rx_missed, missed, __ATOMIC_RELAXED);
    __atomic_store_n(&words->rx_errors, errors, __ATOMIC_RELAXED);
    __atomic_store_n(&words->rx_nombuf, nombuf, __ATOMIC_RELAXED);
}

static void *watch(void *argument)
{
    while (!stopping) {
        read_statistics(argument);
        usleep(STATISTICS_US);
    }
    return NULL;
}

/* ---------------------------------------------------------------- the program */

static void report(const struct bridge *bridge)
{
    const struct segment *segment = &bridge->segment;

    fprintf(stderr, NAME ": stopped, received %lld, written %lld, dropped %lld, cut %lld, missed %lld\n",
            (long long)segment->bridge->received, (long long)*ring_word(segment, RING_TAIL_AT),
            (long long)*ring_word(segment, RING_REFUSED_AT), (long long)segment->bridge->oversized,
            (long long)segment->bridge->rx_missed);
}

/* Poll until a signal; the segment is there already. */
static int serve(struct bridge *bridge)
{
    struct dpdk_bridge *words = bridge->segment.bridge;
    pthread_t watcher;

    bridge->base_missed = words->rx_missed;
    bridge->base_errors = words->rx_errors;
    bridge->base_nombuf = words->rx_nombuf;
    if (start_ports(bridge) != DONE)
        return FAILED;
    if (rte_ctrl_thread_create(&watcher, "bridge-watch", NULL, watch, bridge) != 0)
        return complain("no thread for the statistics");
    __atomic_store_n(&words->state, BRIDGE_POLLING, __ATOMIC_RELEASE);
    fprintf(stderr, NAME ": polling, ports %u, queues %u, generation %lld\n", bridge->port_count,
            bridge->queue_count, (long long)words->generation);
    poll_ports(bridge);
    pthread_join(watcher, NULL);
    read_statistics(bridge);
    report(bridge);
    return DONE;
}

static int run(const struct options *options)
{
    struct plan plan = options->plan;
    struct bridge bridge = {
        .queue_count = (uint16_t)plan.queues,
        .lossless = (int)plan.lossless,
        .frame_size = (uint32_t)plan.frame_size,
    };
    char note[REASON_SIZE];
    int code;

    if (choose_ports(&bridge, options->ports) != DONE || set_up_ports(&bridge) != DONE)
        return FAILED;
    plan.ports = bridge.port_count;
    if (segment_open(&bridge.segment, &plan, note) != 0)
        return complain("%s", note);
    if (note[0] != 0)
        complain("%s", note);
    code = serve(&bridge);
    for (uint16_t k = 0; k < bridge.port_count; k++) {
        rte_eth_dev_stop(bridge.ports[k]);
        rte_eth_dev_close(bridge.ports[k]);
    }
    segment_close(&bridge.segment);
    return code;
}

int main(int count, char **words)
{
    struct sigaction action = {.sa_handler = on_signal};
    struct options options;
    int code = read_options(count, words, &options), first = optind - 1;

    if (code != DONE)
        return code < 0 ? DONE : code;
    words[first] = words[0]; /* DPDK's arguments begin with a program name as well */
    if (rte_eal_init(count - first, words + first) < 0)
        return complain("DPDK does not start: %s", rte_strerror(rte_errno));
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    code = run(&options);
    rte_eal_cleanup();
    return code;
}
