// What the emulator remembers of every word of memory, and how it finds races from that.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <atomic>
#include <vector>

namespace emulator {

constexpr int WARP = 32, NOBODY = -1, MANY = -2;
enum Flags { FRESH = 1, MAPPED = 2 };  // not yet written; shared with the host

// Who accesses: launch and block, thread, and how many barriers of the block and __syncwarp() of the thread's
// warp are complete.
struct Now {
    uint64_t launch;
    int block;
    uint32_t thread, epoch, turn;
};

// Who touched a word of memory last in this launch.
struct Cell {
    uint64_t launch = 0;
    int write_block = NOBODY, writer = 0, read_block = NOBODY;
    uint32_t write_epoch = 0, write_turn = 0, read_epoch = 0, read_turn = 0, read_warps = 0, read_lanes = 0;
    bool atomic = false;
};

// Cells of an area: one per 4 bytes, or per byte once a shorter access has been seen.
struct Shadow {
    std::vector<Cell> cells;
    uint32_t grain = 4;

    void reset(uint64_t size) {
        grain = 4;
        cells.assign(size / 4 + 1, Cell());
    }
    void split() {
        std::vector<Cell> bytes(cells.size() * 4);
        for (size_t n = 0; n < bytes.size(); ++n) bytes[n] = cells[n / 4];
        cells.swap(bytes);
        grain = 1;
    }
};

struct Area {
    std::atomic<uint64_t> at{0};
    uint64_t size = 0, constant_in = 0;
    uint32_t flags = 0;
    std::vector<uint8_t> written;
    Shadow shadow;
};

// Note an access; the name of the race that it makes, or nullptr.
inline const char* check_cell(const Now& now, Cell& cell, bool store, bool atomic) {
    const uint32_t thread = now.thread;
    if (cell.launch != now.launch) {
        cell = Cell();
        cell.launch = now.launch;
    }
    uint32_t warp = thread / WARP, lane = thread % WARP, turn = now.turn;
    const char* race = nullptr;
    if (cell.write_block != NOBODY && !(cell.atomic && atomic)) {
        bool ordered =
            cell.write_block == now.block && (cell.writer == (int)thread || cell.write_epoch != now.epoch ||
                                              (cell.writer / WARP == (int)warp && cell.write_turn != turn));
        if (!ordered) race = store ? "write after write" : "read after write";
    }
    bool current = cell.read_block == now.block && cell.read_epoch == now.epoch;
    if (store && !race) {
        if (cell.read_block == MANY || (cell.read_block != NOBODY && cell.read_block != now.block))
            race = "write after read";
        if (current && (cell.read_warps & ~(1u << warp))) race = "write after read";
        if (current && (cell.read_warps >> warp & 1) && cell.read_turn == turn &&
            (cell.read_lanes & ~(1u << lane)))
            race = "write after read";
    }
    if (store) {
        cell.write_block = now.block;
        cell.writer = thread;
        cell.write_epoch = now.epoch;
        cell.write_turn = turn;
        cell.atomic = atomic;
    } else {
        if (!current) cell.read_warps = cell.read_lanes = 0;
        if (cell.read_turn != turn) cell.read_lanes = 0;
        cell.read_block = cell.read_block == NOBODY || cell.read_block == now.block ? now.block : MANY;
        cell.read_epoch = now.epoch;
        cell.read_turn = turn;
        cell.read_warps |= 1u << warp;
        cell.read_lanes |= 1u << lane;
    }
    return race;
}

}  // namespace emulator
