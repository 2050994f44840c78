// The emulator: fibers, barriers and warp collectives as scheduler turns, and what a sanitizer does for a
// GPU.
//
// Blocks run one after the other (in a seeded order), their threads as fibers that change only at a barrier
// or a collective (in a seeded order).  What could race does so in any order that these leave open, so races
// are found from the accesses themselves: two accesses to a word, one of them a store, by threads that no
// barrier and no
// __syncwarp() stands between.  Shuffles and votes order nothing, as on the device.  Blocks are never
// ordered.
#include "runtime.h"
#include "shadow.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {
namespace {

enum Status : uint8_t { READY, AT_BARRIER, AT_COLLECTIVE, DONE };
[[maybe_unused]] constexpr size_t SLACK = 64;  // that the device of the tests leaves behind every allocation
constexpr size_t STACK = 128 * 1024;

struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    Status status = READY;
    uint32_t number = 0, mask = 0, kind = 0, source = 0;  // of what it waits for
    uint64_t put = 0, got = 0;
    const char* where = "";
    void* fake_stack = nullptr;
#if !defined(__x86_64__)
    ucontext_t machine;
#endif
};

constexpr int AREAS = 4096;
Area areas[AREAS];
std::atomic<int> area_count{0};
std::mutex areas_lock;
std::atomic<uint64_t> launches{0};
std::atomic<int> aborted{0};

}  // namespace

struct State {
    std::vector<Fiber> fibers;
    Shadow shared_shadow;
    std::vector<uint8_t> shared_written;
    std::vector<uint32_t> turns;  // completed __syncwarp() of each warp
    uint32_t epoch = 0;           // completed barriers of the block
    uint64_t seed = 0, launch = 0;
    int block = 0;
    Area* last = nullptr;
    char fault[320] = {0};
    Fiber scheduler;
    const void* scheduler_bottom = nullptr;
    size_t scheduler_size = 0;
    void (*body)(Context*, void**) = nullptr;
    void** arguments = nullptr;
};

#if defined(__x86_64__)
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch,.-emulator_switch
.section .note.GNU-stack,"",@progbits
.text
)");
#endif

namespace {
thread_local Context* entering;  // handed to a fiber that starts

void machine_switch(Fiber& from, Fiber& to) {
#if defined(__x86_64__)
    emulator_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.machine, &to.machine);
#endif
}

void leave(Context* context) {
    State& state = *context->state;
    Fiber& self = state.fibers[context->thread];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(self.status == DONE ? nullptr : &self.fake_stack, state.scheduler_bottom,
                                   state.scheduler_size);
#endif
    machine_switch(self, state.scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(self.fake_stack, &state.scheduler_bottom, &state.scheduler_size);
#endif
}

void enter(Context* context, uint32_t thread) {
    State& state = *context->state;
    Fiber& fiber = state.fibers[thread];
    context->thread = thread;
    entering = context;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack, STACK);
#endif
    machine_switch(state.scheduler, fiber);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void first_frame() {
    Context* context = entering;
    State& state = *context->state;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &state.scheduler_bottom, &state.scheduler_size);
#endif
    state.body(context, state.arguments);
    state.fibers[context->thread].status = DONE;
    leave(context);
    abort();  // a finished fiber is never entered
}

void prepare(Fiber& fiber) {
    char* stack = fiber.stack;
    fiber = Fiber();
    fiber.stack = stack;
#if defined(__x86_64__)
    void** top = (void**)(stack + STACK) - 2;
    top[0] = (void*)first_frame;  // returned into: the stack is then aligned as after a call
    top[1] = nullptr;
    fiber.stack_pointer = top - 6;
    memset(fiber.stack_pointer, 0, 6 * sizeof(void*));
#else
    getcontext(&fiber.machine);
    fiber.machine.uc_stack.ss_sp = stack;
    fiber.machine.uc_stack.ss_size = STACK;
    fiber.machine.uc_link = nullptr;
    makecontext(&fiber.machine, first_frame, 0);
#endif
}

template <class... Parts>
void say(State& state, const char* format, Parts... parts) {
    if (!state.fault[0]) snprintf(state.fault, sizeof state.fault, format, parts...);
}

// End the launch: the fiber that is at fault is never entered again.
[[noreturn]] void fail(Context* context) {
    leave(context);
    abort();
}

uint32_t draw(State& state) {
    state.seed = state.seed * 6364136223846793005ull + 1442695040888963407ull;
    return state.seed >> 33;
}

void shuffle_order(State& state, std::vector<uint32_t>& order) {
    for (size_t n = order.size(); state.seed && n > 1; --n) std::swap(order[n - 1], order[draw(state) % n]);
}

// ---------------------------------------------------------------- races

void check_races(Context* context, Shadow& shadow, uint64_t offset, uint32_t size, uint32_t kind,
                 const char* space, const char* where) {
    if (kind == STRONG_READ || kind == STRONG_WRITE) return;
    State& state = *context->state;
    bool store = kind == WRITE || kind == ATOMIC;
    Now now = {state.launch, state.block, context->thread, state.epoch, state.turns[context->thread / WARP]};
    if (size < 4 && shadow.grain == 4) shadow.split();
    for (uint64_t n = offset / shadow.grain; n <= (offset + size - 1) / shadow.grain; ++n) {
        int other = shadow.cells[n].writer;
        if (const char* race = check_cell(now, shadow.cells[n], store, kind == ATOMIC)) {
            say(state, "%s race, %s: block %d thread %u (last writer: thread %d) at %s", space, race,
                state.block, context->thread, other, where);
            fail(context);
        }
    }
}

void check_written(Context* context, std::vector<uint8_t>& written, uint64_t offset, uint32_t size,
                   uint32_t kind, const char* space, const char* where) {
    if (kind == WRITE || kind == STRONG_WRITE) {
        memset(&written[offset], 1, size);
        return;
    }
    for (uint32_t n = 0; n < size; ++n)
        if (!written[offset + n]) {
            say(*context->state, "uninitialised %s memory read: block %d thread %u at %s", space,
                context->state->block, context->thread, where);
            fail(context);
        }
}

Area* find_area(State& state, uint64_t at, uint32_t size) {
    auto holds = [&](Area& area) {
        uint64_t base = area.at.load(std::memory_order_acquire);
        return base && at >= base && at - base < area.size && size <= area.size - (at - base);
    };
    if (state.last && holds(*state.last)) return state.last;
    int count = area_count.load(std::memory_order_acquire);
    for (int n = 0; n < count; ++n)
        if (holds(areas[n])) return state.last = &areas[n];
    return nullptr;
}

const char* name_of(uint32_t kind) { return kind == WRITE || kind == STRONG_WRITE ? "store" : "load"; }

char* access_shared(Context* context, uint64_t at, uint32_t size, uint32_t kind, const char* where) {
    State& state = *context->state;
    uint64_t offset = at - SHARED_WINDOW - SHARED_BASE;
    if (offset >= context->shared_size || size > context->shared_size - offset) {
        say(state, "shared %s of %u bytes out of bounds (byte %lld of %u): block %d thread %u at %s",
            name_of(kind), size, (long long)offset, context->shared_size, state.block, context->thread,
            where);
        fail(context);
    }
    check_written(context, state.shared_written, offset, size, kind, "shared", where);
    check_races(context, state.shared_shadow, offset, size, kind, "shared", where);
    return context->shared + offset;
}

// ---------------------------------------------------------------- turns of the scheduler

void complete_collective(State& state, uint32_t first, uint32_t count, Fiber& asked) {
    uint32_t votes = 0, mask = asked.mask, kind = asked.kind;
    for (uint32_t lane = 0; lane < count; ++lane)
        if (mask >> lane & 1 && state.fibers[first + lane].put) votes |= 1u << lane;
    for (uint32_t lane = 0; lane < count; ++lane) {
        if (!(mask >> lane & 1)) continue;
        Fiber& fiber = state.fibers[first + lane];
        if (kind == SHUFFLE && !(mask >> fiber.source & 1)) {
            say(state, "shuffle reads lane %u, which is not in mask %08x, at %s", fiber.source, mask,
                fiber.where);
            return;
        }
        fiber.got = kind == SHUFFLE ? state.fibers[first + fiber.source].put : votes;
        fiber.status = READY;
    }
    if (kind == SYNC && (count == WARP ? mask == ~0u : mask == (1u << count) - 1))
        state.turns[first / WARP]++;
}

// Whether every lane that the mask names waits in the same collective.
bool is_complete(State& state, uint32_t first, uint32_t count, Fiber& asked) {
    for (uint32_t lane = 0; lane < WARP; ++lane) {
        if (!(asked.mask >> lane & 1)) continue;
        if (lane >= count || state.fibers[first + lane].status == DONE) {
            say(state, "mask %08x names lane %u, which has %s, at %s", asked.mask, lane,
                lane < count ? "exited" : "never existed", asked.where);
            return false;
        }
        Fiber& other = state.fibers[first + lane];
        if (other.status != AT_COLLECTIVE || other.mask != asked.mask || other.kind != asked.kind)
            return false;
    }
    return true;
}

bool release_collectives(State& state) {
    bool released = false;
    uint32_t threads = state.fibers.size();
    for (uint32_t first = 0; first < threads; first += WARP) {
        uint32_t count = std::min<uint32_t>(WARP, threads - first);
        for (uint32_t lane = 0; lane < count && !state.fault[0]; ++lane) {
            Fiber& fiber = state.fibers[first + lane];
            if (fiber.status != AT_COLLECTIVE || !is_complete(state, first, count, fiber)) continue;
            complete_collective(state, first, count, fiber);
            released = true;
        }
    }
    return released;
}

bool release_barrier(State& state) {
    uint32_t waiting = 0, done = 0;
    const Fiber *one = nullptr, *other = nullptr;
    for (Fiber& fiber : state.fibers) {
        done += fiber.status == DONE;
        if (fiber.status != AT_BARRIER) continue;
        ++waiting;
        if (!one) one = &fiber;
        if (fiber.number != one->number || fiber.where != one->where) other = &fiber;
    }
    if (!waiting || waiting + done < state.fibers.size()) return false;
    if (done)
        say(state, "divergent barrier: %u threads wait at %s, %u have exited", waiting, one->where, done);
    else if (other)
        say(state, "divergent barrier: threads wait at %s and at %s", one->where, other->where);
    ++state.epoch;
    for (Fiber& fiber : state.fibers)
        if (fiber.status == AT_BARRIER) fiber.status = READY;
    return true;
}

void run_block(Context* context) {
    State& state = *context->state;
    std::vector<uint32_t> order(state.fibers.size());
    for (uint32_t n = 0; n < order.size(); ++n) {
        order[n] = n;
        prepare(state.fibers[n]);
    }
    while (!state.fault[0]) {
        shuffle_order(state, order);
        bool ran = false;
        uint32_t done = 0;
        for (uint32_t n : order) {
            if (state.fibers[n].status == READY) {
                ran = true;
                enter(context, n);
                if (state.fault[0]) return;
            }
            done += state.fibers[n].status == DONE;
        }
        if (done == order.size()) return;
        bool released = release_collectives(state) || release_barrier(state);
        if (!ran && !released && !state.fault[0]) {
            uint32_t at_barrier = 0, at_collective = 0;
            const char* where = "";
            for (Fiber& fiber : state.fibers) {
                at_barrier += fiber.status == AT_BARRIER;
                at_collective += fiber.status == AT_COLLECTIVE;
                if (fiber.status == AT_COLLECTIVE) where = fiber.where;
            }
            say(state, "deadlock: %u threads at a barrier, %u in a warp collective, %u exited; %s",
                at_barrier, at_collective, done, where);
        }
    }
}

}  // namespace

extern "C" {

char* emulator_access(Context* context, uint64_t at, uint32_t size, uint32_t kind, const char* where) {
    State& state = *context->state;
    if (at % size) {
        say(state, "misaligned %s of %u bytes: block %d thread %u at %s", name_of(kind), size, state.block,
            context->thread, where);
        fail(context);
    }
    if (at & SHARED_WINDOW) return access_shared(context, at, size, kind, where);
    Area* area = find_area(state, at, size);
    if (!area) {
        say(state, "global %s of %u bytes outside every allocation: block %d thread %u at %s", name_of(kind),
            size, state.block, context->thread, where);
        fail(context);
    }
    uint64_t offset = at - area->at.load(std::memory_order_relaxed);
    if (area->flags & MAPPED) return (char*)at;
    bool store = kind == WRITE || kind == ATOMIC || kind == STRONG_WRITE;
    if (area->constant_in == state.launch) {
        if (store) {
            say(state, "store to a const argument: block %d thread %u at %s", state.block, context->thread,
                where);
            fail(context);
        }
        if (area->flags & FRESH) check_written(context, area->written, offset, size, kind, "global", where);
        return (char*)at;
    }
    if (kind == CONSTANT_READ) {
        say(state,
            "load by the constant cache from memory that the launch may write: block %d thread %u at %s",
            state.block, context->thread, where);
        fail(context);
    }
    if (area->flags & FRESH) check_written(context, area->written, offset, size, kind, "global", where);
    if (area->shadow.cells.empty()) area->shadow.reset(area->size);
    check_races(context, area->shadow, offset, size, kind, "global", where);
    return (char*)at;
}

void emulator_barrier(Context* context, uint32_t number, const char* where) {
    Fiber& self = context->state->fibers[context->thread];
    self.status = AT_BARRIER;
    self.number = number;
    self.where = where;
    leave(context);
}

uint64_t emulator_collective(Context* context, uint32_t kind, uint32_t mask, uint64_t value, uint32_t source,
                             const char* where) {
    Fiber& self = context->state->fibers[context->thread];
    if (!(mask >> context->thread % WARP & 1)) {
        say(*context->state, "lane %u calls a collective whose mask %08x lacks it, at %s",
            context->thread % WARP, mask, where);
        fail(context);
    }
    self.status = AT_COLLECTIVE;
    self.kind = kind;
    self.mask = mask;
    self.put = value;
    self.source = source % WARP;
    self.where = where;
    leave(context);
    return self.got;
}

void emulator_exhausted(Context* context, const char* where) {
    say(*context->state, aborted.load() ? "aborted at %s" : "endless loop at %s", where);
    fail(context);
}

void emulator_rest(Context* context) {
    if (aborted.load(std::memory_order_relaxed)) context->budget = 0;
}

const char* emulator_run(const Launch* launch, void (*body)(Context*, void**), void** arguments) {
    static thread_local char message[320];
    State state;
    Context context = {};
    state.seed = launch->seed;
    state.launch = launches.fetch_add(1) + 1;
    state.body = body;
    state.arguments = arguments;
    state.fibers.resize(launch->threads);
    context.shared_size = launch->static_shared + launch->dynamic_shared;
    context.block_dim = {launch->threads, 1, 1};
    context.grid_dim = {launch->grid_x, launch->grid_y, 1};
    context.budget = launch->budget;
    context.state = &state;
    for (uint32_t n = 0; n < launch->constants; ++n)
        if (Area* area = find_area(state, launch->constant[n], 1)) area->constant_in = state.launch;
    size_t room = STACK * state.fibers.size();
    char* stacks = (char*)mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t n = 0; n < state.fibers.size(); ++n) state.fibers[n].stack = stacks + n * STACK;
    std::vector<char> memory(context.shared_size + 128);
    context.shared = memory.data() + (64 - (uintptr_t)memory.data() % 64) % 64;
#if defined(__SANITIZE_ADDRESS__)
    char* end = context.shared + context.shared_size;
    __asan_poison_memory_region(end, memory.data() + memory.size() - end);
#endif
    std::vector<uint32_t> blocks(launch->grid_x * launch->grid_y);
    for (uint32_t n = 0; n < blocks.size(); ++n) blocks[n] = n;
    shuffle_order(state, blocks);
    for (uint32_t block : blocks) {
        state.block = block;
        state.epoch = 0;
        state.turns.assign(launch->threads / WARP + 1, 0);
        state.shared_written.assign(context.shared_size + 1, 0);
        state.shared_shadow.reset(context.shared_size);
        memset(context.shared, 0xff, context.shared_size);
        context.block_id = {block % launch->grid_x, block / launch->grid_x, 0};
        run_block(&context);
        if (state.fault[0]) break;
    }
    munmap(stacks, room);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(end, memory.data() + memory.size() - end);
#endif
    memcpy(message, state.fault, sizeof message);
    return message[0] ? message : nullptr;
}

// Make memory known; flags: 1 = holds nothing yet, 2 = shared with the host.
void emulator_allocate(uint64_t at, uint64_t size, uint32_t flags) {
    std::lock_guard<std::mutex> guard(areas_lock);
    int n = 0, count = area_count.load();
    while (n < count && areas[n].at.load()) ++n;
    if (n == AREAS) abort();
    areas[n].size = size;
    areas[n].flags = flags;
    areas[n].constant_in = 0;
    areas[n].shadow.cells.clear();
    areas[n].written.assign(flags & FRESH ? size : 0, 0);
    areas[n].at.store(at, std::memory_order_release);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region((void*)(at + size), SLACK);
#endif
    if (n == count) area_count.store(count + 1, std::memory_order_release);
}

void emulator_release(uint64_t at) {
    std::lock_guard<std::mutex> guard(areas_lock);
    for (int n = 0; n < area_count.load(); ++n)
        if (areas[n].at.load() == at) {
#if defined(__SANITIZE_ADDRESS__)
            __asan_unpoison_memory_region((void*)(at + areas[n].size), SLACK);
#endif
            areas[n].at.store(0, std::memory_order_release);
        }
}

// The host has written this range.
void emulator_written(uint64_t at, uint64_t size) {
    for (int n = 0; n < area_count.load(); ++n) {
        uint64_t base = areas[n].at.load();
        if (base && at >= base && at + size <= base + areas[n].size && areas[n].flags & FRESH)
            memset(&areas[n].written[at - base], 1, size);
    }
}

// Bytes of this range that neither host nor kernel has written since it was allocated.
int64_t emulator_unwritten(uint64_t at, uint64_t size) {
    for (int n = 0; n < area_count.load(); ++n) {
        uint64_t base = areas[n].at.load();
        if (!base || at < base || at + size > base + areas[n].size) continue;
        if (!(areas[n].flags & FRESH)) return 0;
        auto first = areas[n].written.begin() + (at - base);
        return std::count(first, first + size, 0);
    }
    return size;
}

void emulator_abort(int whether) { aborted.store(whether); }
}

}  // namespace emulator
