/* The bridge's command line, and how it complains: one line on stderr. */
#ifndef CONTRAFUSION_OPTIONS_H
#define CONTRAFUSION_OPTIONS_H

#include "segment.h"

#define NAME "contrafusion-dpdk-bridge"

enum { DONE = 0, FAILED = 1, USAGE = 2 }; /* exit codes */
enum { QUEUES_MAX = 16 };

struct options {
    struct plan plan;
    const char *ports; /* NULL = every port */
};

/* Say one line; returns FAILED. */
int complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Read a whole decimal number between low and high; -1 when it is none. */
int64_t number_in(const char *text, int64_t low, int64_t high);

/* Read our options, up to "--"; returns DONE, USAGE, or -1 when only help was asked for. optind is behind. */
int read_options(int count, char **words, struct options *options);

#endif
