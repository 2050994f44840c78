// What translated PTX, and CUDA sources through shim.h, call: threads that are fibers, and a check of every
// access. Test code only: it says whether a kernel is right, never how fast it is.
#pragma once
#include <stdint.h>

namespace emulator {

struct Dim {
    uint32_t x, y, z;
};

// Written by the scheduler; a fiber reads its own number from `thread` while it runs.
struct Context {
    Dim block_dim, grid_dim, block_id;
    uint32_t thread;
    int64_t budget;  // backward branches left before the launch counts as endless
    char* shared;
    uint32_t shared_size;
    struct State* state;
};

enum Kind { READ = 0, WRITE = 1, ATOMIC = 2, STRONG_READ = 3, STRONG_WRITE = 4, CONSTANT_READ = 5 };
enum Collective { SHUFFLE = 0, BALLOT = 1, SYNC = 2 };

// Shared memory has offsets from SHARED_BASE on (the first KiB is the system's on real devices too); as a
// generic address an offset carries the bit SHARED_WINDOW, which no address of the host has.
constexpr uint64_t SHARED_BASE = 1024, SHARED_WINDOW = 1ull << 62;

extern "C" {
char* emulator_access(Context*, uint64_t at, uint32_t size, uint32_t kind, const char* where);
void emulator_barrier(Context*, uint32_t number, const char* where);
uint64_t emulator_collective(Context*, uint32_t kind, uint32_t mask, uint64_t value, uint32_t source,
                             const char* where);
void emulator_exhausted(Context*, const char* where);
void emulator_rest(Context*);
// Run body(context, arguments) in every thread of the grid; nullptr, or what went wrong.
const char* emulator_run(const struct Launch*, void (*body)(Context*, void**), void** arguments);
}

struct Launch {
    uint32_t grid_x, grid_y, threads, static_shared, dynamic_shared, constants;
    uint64_t seed;             // of the schedule; 0 = threads in order
    int64_t budget;            // backward branches
    const uint64_t* constant;  // addresses of memory that the launch may only read
};

}  // namespace emulator
