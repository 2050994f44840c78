/* See options.h. */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int complain(const char *format, ...)
{
    char text[REASON_SIZE];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "%s: %s\n", NAME, text);
    return FAILED;
}

static void print_usage(FILE *out)
{
    fprintf(out,
            "usage: " NAME " [OPTIONS] [-- EAL ARGUMENTS]\n\n"
            "  --segment FILE       the shared ring (default " SEGMENT_DEFAULT ")\n"
            "  --slots N            frames it holds, a power of two up to %lld (default %lld)\n"
            "  --frame-size BYTES   bytes kept of a frame, %lld to %lld (default %lld)\n"
            "  --ports LIST         port numbers, such as 0,1 (default: every port)\n"
            "  --queues N           receive queues of each port, 1 to %d (default 1)\n"
            "  --lossless           wait for the reader when the ring is full (default: drop and count)\n"
            "  --help\n\n"
            "What follows -- goes to DPDK: -l 2 -a 0000:01:00.0, --vdev=net_pcap0,rx_pcap=FILE, ...\n",
            (long long)SLOTS_MAX, (long long)SLOTS_DEFAULT, (long long)FRAME_SIZE_MIN,
            (long long)FRAME_SIZE_MAX, (long long)FRAME_SIZE_DEFAULT, QUEUES_MAX);
}

int64_t number_in(const char *text, int64_t low, int64_t high)
{
    char *end;
    long long value;

    errno = 0;
    value = strtoll(text, &end, 10);
    return errno != 0 || end == text || *end != 0 || value < low || value > high ? -1 : value;
}

static int wrong(const char *option, const char *value)
{
    complain("--%s %s: not a value of this option, see --help", option, value);
    return USAGE;
}

int read_options(int count, char **words, struct options *options)
{
    static const struct option known[] = {
        {"segment", required_argument, NULL, 's'}, {"slots", required_argument, NULL, 'n'},
        {"frame-size", required_argument, NULL, 'f'}, {"ports", required_argument, NULL, 'p'},
        {"queues", required_argument, NULL, 'q'}, {"lossless", no_argument, NULL, 'l'},
        {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0},
    };
    struct plan *plan = &options->plan;
    int letter;

    *options = (struct options){
        .plan = {SEGMENT_DEFAULT, SLOTS_DEFAULT, FRAME_SIZE_DEFAULT, .queues = 1},
    };
    while ((letter = getopt_long(count, words, "+", known, NULL)) != -1) {
        switch (letter) {
        case 's': plan->path = optarg; break;
        case 'n': plan->slots = number_in(optarg, 1, SLOTS_MAX); break;
        case 'f': plan->frame_size = number_in(optarg, FRAME_SIZE_MIN, FRAME_SIZE_MAX); break;
        case 'p': options->ports = optarg; break;
        case 'q': plan->queues = number_in(optarg, 1, QUEUES_MAX); break;
        case 'l': plan->lossless = 1; break;
        case 'h': print_usage(stdout); return -1;
        default: print_usage(stderr); return USAGE;
        }
        if (plan->slots < 1 || (plan->slots & (plan->slots - 1)) != 0)
            return wrong("slots", optarg);
        if (plan->frame_size < 0)
            return wrong("frame-size", optarg);
        if (plan->queues < 0)
            return wrong("queues", optarg);
    }
    if (optind < count && strcmp(words[optind - 1], "--") != 0) {
        complain("unexpected argument %s: what is meant for DPDK follows --", words[optind]);
        return USAGE;
    }
    return DONE;
}
