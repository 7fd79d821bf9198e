// Lets g++ or clang build the unchanged .cu files: blocks, warps, shared memory, barriers and shuffles on one CPU thread.
//
// Each CUDA thread is a fiber. A fiber runs until it reaches a barrier or a warp operation, then another one runs, in an
// order that a seed shuffles: where a barrier is missing, some order shows it. What CUDA leaves undefined is
// an error here: a barrier that only part of a block (a shuffle that only part of a warp) reaches, or that its threads reach
// at different places; a mask other than the full warp; a write behind the dynamic shared memory that was asked for. Reads
// there, and of shared memory that nobody has written, give NaN. Arrays in global memory come from the driver with unmapped
// pages around them; a fault ends the launch with a message. As under CuPy (-ftz=true) float has no subnormals.
// With EMULATED_CHECKS, cuda_checks.h adds what slows a kernel down: races, uninitialised shared memory, callers.

#ifndef CUDA_EMULATION_H
#define CUDA_EMULATION_H

#include <csetjmp>
#include <csignal>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// All fibers live on one thread, so that thread_local is shared by a block; unlike 'static' it may follow 'extern'.
#define __shared__ thread_local

#ifdef EMULATED_CHECKS
#define UNSEEN __attribute__((no_sanitize_thread))  // of this emulation, not of a kernel
#define CALLER , emulated::Caller = __builtin_source_location()
#else
#define UNSEEN
#define CALLER
#endif

namespace emulated {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

enum State { READY, AT_BARRIER, IN_WARP, DONE };

constexpr size_t STACK = STACK_BYTES, SHARED_LIMIT = 228 << 10, GUARD = 4096;

// Of a collective in the source: which one it is does not depend on what a compiler copies or merges.
struct Place {
    int line;
    unsigned number;
    Place(int line, unsigned number) : line(line), number(number) {}
    Place(int line = 0) : Place(line, -unsigned(line)) {}  // of one in this file
};

// xorshift64*: the order of turns needs no better, and <random> takes long to compile.
struct Order {
    uint64_t state;
    uint32_t operator()() {
        state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
        return uint32_t(state * 0x2545f4914f6cdd1du >> 32);
    }
};

struct Fiber {
    State state;
    Place place;
    unsigned path, parity;  // path: all calls that led here, in a checked build
    jmp_buf context;
    char* stack;
};

struct Warp {
    uint64_t slot[2][32];
    int arrived;
};

// Memory that a launch leaves to the next one. Without std::vector and std::string no build needs the C++ library, which the
// compiler in a wheel would have to build first, and every build is shorter.
template <class T>
struct Array {
    T* at;
    size_t count, capacity;
    void zeros(size_t size) {
        if (capacity < size) {
            free(at);
            at = (T*)malloc(size * sizeof(T)), capacity = size;
            if (!at) abort();
        }
        count = size;
        memset((void*)at, 0, size * sizeof(T));
    }
    void numbers(size_t size) {
        zeros(size);
        for (size_t k = 0; k < size; k++) at[k] = T(k);
    }
    UNSEEN T& operator[](size_t k) {
        return at[k];
    }
    T* begin() {
        return at;
    }
    T* end() {
        return at + count;
    }
};

inline Index thread_index, block_index, block_size, grid_size;
inline Array<Fiber> fibers;
inline Array<Warp> warps;
inline Array<unsigned> turns, warp_turns;
inline Array<long> blocks;
inline unsigned current;
inline jmp_buf scheduler;
inline sigjmp_buf way_out;
inline char message[256];
inline void (*body)(void*);
inline void* body_argument;
inline bool votes, voted;  // of the barrier that is awaited, and of the last one

[[noreturn]] inline void fail(const char* text, int line = 0) {
    if (line)
        snprintf(message, sizeof message, "%s (line %d, block %u, thread %u)", text, line, block_index.x, current);
    else
        snprintf(message, sizeof message, "%s (block %u, thread %u)", text, block_index.x, current);
    siglongjmp(way_out, 1);
}

#ifdef EMULATED_CHECKS
}  // namespace emulated
#include "cuda_checks.h"
namespace emulated {
#define ATOMIC UNSEEN __attribute__((noinline))
template <class T>
UNSEEN T atomically(T* at) {
    look(at, sizeof *at, ATOMICALLY);
    return *at;
}
#else
#define __log2f ::log2f
#define __fdividef(x, y) ((x) / (y))
#define ATOMIC inline
template <class T>
T atomically(T* at) {
    return *at;
}
#endif

UNSEEN inline void pause_fiber(State state, Place place) {
    Fiber& fiber = fibers[current];
    fiber.state = state;
    fiber.place = place;
    if (!_setjmp(fiber.context)) _longjmp(scheduler, 1);
}

// The same for threads that are at one place, with the same calls behind them.
UNSEEN inline bool together(const Fiber& one, const Fiber& other) {
    return one.place.number == other.place.number && one.path == other.path;
}

UNSEEN inline void barrier(Place place) {
    pause_fiber(AT_BARRIER, place);
}

UNSEEN inline int barrier_or(int vote, Place place) {
    votes = votes || vote;
    pause_fiber(AT_BARRIER, place);
    return voted;
}

// Deposit a value, wait for the whole warp, and return where the warp's values lie. Two sets of slots in turn: a lane can
// be ahead of another by one operation, never by two.
UNSEEN inline uint64_t* exchange(unsigned mask, uint64_t value, Place place, [[maybe_unused]] bool orders_memory = false) {
    if (mask != 0xffffffffu) fail("a warp operation with a partial mask", place.line);
    Fiber& fiber = fibers[current];
    Warp& warp = warps[current / 32];
    uint64_t* slots = warp.slot[fiber.parity ^= 1];
    slots[current % 32] = value;
    fiber.place = place;
    if (++warp.arrived == 32) {
        for (unsigned lane = current / 32 * 32; lane < current / 32 * 32 + 32; lane++) {
            if (!together(fibers[lane], fiber)) fail("a warp operation that its lanes reach at different lines", place.line);
            fibers[lane].state = READY;
        }
        warp.arrived = 0;
#ifdef EMULATED_CHECKS
        warp_epochs[current / 32] += orders_memory;
#endif
    }
    if (fiber.state == READY && warp.arrived == 0)
        pause_fiber(READY, place);
    else
        pause_fiber(IN_WARP, place);
    return slots;
}

template <class T>
UNSEEN T shuffle(unsigned mask, T value, int lane, Place place) {
    uint64_t bits = 0;
    static_assert(sizeof(T) <= sizeof bits, "shuffles move at most 8 bytes");
    memcpy(&bits, &value, sizeof value);
    uint64_t* slots = exchange(mask, bits, place);
    memcpy(&value, &slots[lane & 31], sizeof value);
    return value;
}

UNSEEN inline unsigned ballot(unsigned mask, bool vote, Place place) {
    uint64_t* slots = exchange(mask, vote, place);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; lane++) votes |= unsigned(slots[lane]) << lane;
    return votes;
}

inline void fiber_main() {
    for (;;) {
        body(body_argument);
        pause_fiber(DONE, {});
    }
}

inline void resume(unsigned thread, ucontext_t* fresh) {
    current = thread;
    thread_index.x = thread;
#ifdef EMULATED_CHECKS
    if (_setjmp(scheduler)) {
        inside = false;
        return;
    }
    inside = true;
#else
    if (_setjmp(scheduler)) return;
#endif
    if (fresh) setcontext(fresh);
    _longjmp(fibers[thread].context, 1);
}

// Let the barrier open if the whole block waits at one place of it.
inline void open_barrier() {
    int line = fibers[0].place.line;
    for (unsigned t = 0; t < fibers.count; t++) {
        current = t;
        if (fibers[t].state == DONE) fail("a thread has left the block while others wait at a barrier");
        if (fibers[t].state == IN_WARP) fail("part of a warp waits in a warp operation that the rest never reaches", fibers[t].place.line);
        if (!together(fibers[t], fibers[0])) fail("a barrier that its threads reach at different lines", line);
    }
    for (Fiber& fiber : fibers) fiber.state = READY;
    voted = votes, votes = false;
#ifdef EMULATED_CHECKS
    epoch++;
#endif
}

template <class T>
void shuffle_order(T* turns, size_t count, Order& order) {
    for (size_t t = count; t > 1; t--) std::swap(turns[t - 1], turns[order() % t]);
}

// Let each of some threads that can run do so until it waits; whether there was one.
inline bool run_ready(const unsigned* threads, size_t count, bool fresh) {
    bool moved = false;
    for (size_t k = 0; k < count; k++) {
        Fiber& fiber = fibers[threads[k]];
        if (fiber.state != READY) continue;
        moved = true;
        ucontext_t start;
        if (fresh) {
            getcontext(&start);
            start.uc_stack.ss_sp = fiber.stack;
            start.uc_stack.ss_size = STACK;
            start.uc_link = nullptr;
            makecontext(&start, fiber_main, 0);
        }
        resume(threads[k], fresh ? &start : nullptr);
    }
    return moved;
}

// Copies of 16 bytes that are under way. They arrive as late as they may, and until then what they go to is no number.
struct Copies {
    struct {
        unsigned* to;
        const unsigned* from;
        int group;
    } list[256];
    int count, groups;
};
inline Copies copies[1024];

inline void run_block(Order& order, bool fresh) {
    turns.numbers(fibers.count);
    warp_turns.numbers(warps.count);
    for (Fiber& fiber : fibers) fiber.state = READY, fiber.parity = 0, fiber.path = 0;
    for (unsigned t = 0; t < fibers.count; t++) copies[t].count = copies[t].groups = 0;
    for (Warp& warp : warps) warp.arrived = 0;
    votes = false;
    for (bool first = fresh;; first = false) {
        // From one barrier to the next, either all threads move in turn, or each warp runs as far as it gets while the others
        // stand: a warp that overtakes shows a missing barrier that fair turns would hide.
        bool in_turn = first || order() % 2;
        if (in_turn) {
            shuffle_order(turns.at, turns.count, order);
            run_ready(turns.at, turns.count, first);
            while (run_ready(turns.at, turns.count, false)) shuffle_order(turns.at, turns.count, order);
        } else {
            shuffle_order(warp_turns.at, warp_turns.count, order);
            unsigned lanes[32];
            for (unsigned w : warp_turns) {
                for (unsigned lane = 0; lane < 32; lane++) lanes[lane] = w * 32 + lane;
                do shuffle_order(lanes, 32, order);
                while (run_ready(lanes, 32, false));
            }
        }
        bool over = true;
        for (Fiber& fiber : fibers) over = over && fiber.state == DONE;
        if (over) return;
        open_barrier();
    }
}

inline void on_signal(int number, siginfo_t* info, void*) {
    bool stack = fibers.count && uintptr_t(fibers[current].stack) - uintptr_t(info->si_addr) <= STACK;
    const char* what = number == SIGFPE ? "a division by zero"
                       : stack         ? "more of a thread's own memory than the emulation has"
                       : number == SIGILL || number == SIGTRAP ? "an index outside its array"
                                                               : "a read or write outside its array";
    snprintf(message, sizeof message, "%s (block %u, thread %u)", what, block_index.x, current);
    siglongjmp(way_out, 1);
}

struct Signals {
    static constexpr int numbers[5] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
    struct sigaction old[5];
    stack_t old_stack;
    Signals() {
        static char own[1 << 16];
        stack_t stack = {};
        stack.ss_sp = own;
        stack.ss_size = sizeof own;
        sigaltstack(&stack, &old_stack);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_ONSTACK | SA_NODEFER | SA_SIGINFO;
        for (int k = 0; k < 5; k++) sigaction(numbers[k], &action, &old[k]);
    }
    ~Signals() {
        for (int k = 0; k < 5; k++) sigaction(numbers[k], &old[k], nullptr);
        sigaltstack(&old_stack, nullptr);
    }
};

inline const char* run(void (*kernel)(void*), void* argument, unsigned char* shared, long grid, long block, long shared_bytes,
                       unsigned long seed, char** stacks, bool flush, long most_threads) {
    if (block < 32 || block > most_threads || block > 1024 || block % 32) return "the block is no multiple of 32 up to the kernel's launch bound";
    if (shared_bytes < 0 || size_t(shared_bytes) > SHARED_LIMIT) return "more shared memory than any device has";
    if (grid < 1 || grid > 2147483647) return "the grid is outside what a launch takes";
    Signals signals;
    body = kernel;
    body_argument = argument;
    fibers.zeros(block);
    warps.zeros(block / 32);
    for (long t = 0; t < block; t++) fibers[t].stack = stacks[t];
    block_size = {unsigned(block), 1, 1};
    grid_size = {unsigned(grid), 1, 1};
    Order order = {seed * 2654435761u + 88172645463325252u};
#ifdef __SSE__
    unsigned csr = _mm_getcsr();
    if (flush) _mm_setcsr(csr | 0x8040);
#endif
#ifdef EMULATED_CHECKS
    start_launch(shared, size_t(shared_bytes));
#endif
    const char* volatile error = nullptr;
    if (!sigsetjmp(way_out, 1)) {
        bool fresh = true;
        blocks.numbers(grid);
        shuffle_order(blocks.at, blocks.count, order);
        for (long k : blocks) {
            block_index.x = k;
            memset(shared, 0xff, shared_bytes + GUARD);
#ifdef EMULATED_CHECKS
            start_block();
#endif
            run_block(order, fresh);
            fresh = false;
            for (size_t g = 0; g < GUARD; g++)
                if (shared[shared_bytes + g] != 0xff) fail("a write behind the dynamic shared memory");
        }
    } else {
        error = message;
    }
#ifdef EMULATED_CHECKS
    inside = false;
#endif
#ifdef __SSE__
    _mm_setcsr(csr);
#endif
    return error;
}

// Write the type of a parameter, such as "rf4 " for const float*, and move on.
template <class T>
void write_type(char*& at) {
    if constexpr (std::is_pointer_v<T>) {
        typedef std::remove_pointer_t<T> To;
        *at++ = std::is_const_v<To> ? 'r' : 'w';
        write_type<std::remove_const_t<To>>(at);
    } else {
        at += sprintf(at, "%c%d ", std::is_integral_v<T> ? 'i' : 'f', int(sizeof(T)));
    }
}

template <class... A>
struct Call {
    void (*kernel)(A...);
    void** arguments;

    template <size_t... I>
    void apply(std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
    }
    static void invoke(void* self) {
        static_cast<Call*>(self)->apply(std::index_sequence_for<A...>());
    }
};

template <class... A>
const char* signature(void (*)(A...)) {
    static char text[8 * sizeof...(A) + 1];
    char* at = text;
    (write_type<A>(at), ...);
    return text;
}

template <class... A>
const char* launch(void (*kernel)(A...), unsigned char* shared, void** arguments, long grid, long block, long shared_bytes,
                   unsigned long seed, char** stacks, bool flush, long most_threads) {
    Call<A...> call = {kernel, arguments};
    return run(&Call<A...>::invoke, &call, shared, grid, block, shared_bytes, seed, stacks, flush, most_threads);
}

}  // namespace emulated

#define threadIdx emulated::thread_index
#define blockIdx emulated::block_index
#define blockDim emulated::block_size
#define gridDim emulated::grid_size

#define THIS_PLACE emulated::Place(__LINE__, __COUNTER__ + 1u)
#define __syncthreads() emulated::barrier(THIS_PLACE)
#define __syncthreads_or(vote) emulated::barrier_or(vote, THIS_PLACE)
#define __syncwarp() emulated::exchange(0xffffffffu, 0, THIS_PLACE, true)
#define __shfl_sync(mask, value, lane) emulated::shuffle(mask, value, lane, THIS_PLACE)
#define __shfl_xor_sync(mask, value, offset) emulated::shuffle(mask, value, int(emulated::current % 32) ^ (offset), THIS_PLACE)
#define __ballot_sync(mask, vote) emulated::ballot(mask, vote, THIS_PLACE)
#define __any_sync(mask, vote) (emulated::ballot(mask, vote, THIS_PLACE) != 0)
#define __popc(x) __builtin_popcount(x)
#define __ffs(x) __builtin_ffs(x)

inline double __longlong_as_double(long long bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline long long __double_as_longlong(double x) {
    long long bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// One value at a time, as all threads are on one: atomics need no more. They are ordered with one another, in any block.
template <class T, class V>
ATOMIC T atomicMax(T* at, V value) {
    T old = emulated::atomically(at);
    if (old < T(value)) *at = T(value);
    return old;
}
template <class T, class V>
ATOMIC T atomicMin(T* at, V value) {
    T old = emulated::atomically(at);
    if (T(value) < old) *at = T(value);
    return old;
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    return __int_as_float(int(bits));
}

inline unsigned to_half(float x) {
    unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u;
    double size = std::fabs(double(x));
    if (size != size) return 0x7fffu;
    if (size >= 65520) return sign | 0x7c00u;
    int exponent = size < 0x1p-14 ? -14 : std::ilogb(size);
    unsigned steps = unsigned(std::nearbyint(std::ldexp(size, 10 - exponent)));  // 1024 to 2048; fewer for a subnormal
    return sign | (steps + (unsigned(exponent + 14) << 10));
}
UNSEEN inline float of_half(unsigned half) {
    unsigned exponent = half >> 10 & 31, fraction = half & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                 : exponent     ? __uint_as_float((exponent + 112) << 23 | fraction << 13)
                                : float(fraction) * 0x1p-24f;
    return half & 0x8000u ? -size : size;
}
UNSEEN inline float of_bfloat(unsigned bits) {
    return __uint_as_float(bits << 16);
}

namespace emulated {
// 8 numbers of a row or column: those that four lanes hold in the lower, or upper, halves of what they have deposited.
template <float decode(unsigned)>
UNSEEN void decode_row(const uint64_t* lanes, int upper, double* numbers) {
    for (int k = 0; k < 8; k++) numbers[k] = decode(unsigned(lanes[k / 2] >> (32 * upper + k % 2 * 16)) & 0xffffu);
}

// Add a product of matrices to what a lane holds of it. It works on memory of its own, whose accesses are no kernel's.
template <float decode(unsigned)>
UNSEEN void multiply(float* sums, uint64_t left_of_rows, uint64_t right_of_rows, uint64_t of_columns) {
    double rows[2][16], columns[2][16];
    int lane = current % 32;
    const uint64_t* slots = exchange(0xffffffffu, left_of_rows, __LINE__);
    for (int i = 0; i < 2; i++) decode_row<decode>(slots + lane / 4 * 4, i, rows[i]);
    slots = exchange(0xffffffffu, right_of_rows, __LINE__);
    for (int i = 0; i < 2; i++) decode_row<decode>(slots + lane / 4 * 4, i, rows[i] + 8);
    slots = exchange(0xffffffffu, of_columns, __LINE__);
    for (int j = 0; j < 4; j++) decode_row<decode>(slots + (lane % 4 * 2 + j / 2) * 4, j % 2, columns[j / 2] + j % 2 * 8);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            double sum = sums[2 * i + j];
            for (int k = 0; k < 16; k++) sum += rows[i][k] * columns[j][k];
            float rounded = float(sum);
            bool away = std::fabs(rounded) > std::fabs(sum) && std::fabs(sum) < INFINITY;
            sums[2 * i + j] = away ? std::nextafter(rounded, 0.0f) : rounded;
        }
}

// The warp's mma.sync.m16n8k16: exact products, and a sum that is truncated, as tensor cores do with what they add.
template <float decode(unsigned)>
void tensor_core_16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    auto both = [](unsigned lower, unsigned upper) { return lower | uint64_t(upper) << 32; };
    float sums[4] = {c[0], c[1], c[2], c[3]};
    multiply<decode>(sums, both(a[0], a[1]), both(a[2], a[3]), both(b[0], b[1]));
    for (int k = 0; k < 4; k++) c[k] = sums[k];
}
}  // namespace emulated

inline void tensor_core_half(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulated::tensor_core_16<of_half>(c, a, b);
}
inline void tensor_core_bfloat(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulated::tensor_core_16<of_bfloat>(c, a, b);
}

// ldmatrix.x4: lane 8 k + i points to row i of matrix k, of which each lane gets two halves.
inline void load_matrices(unsigned (&fragments)[4], const void* row) {
    if (uintptr_t(row) % 16) emulated::fail("a row of a matrix that is not aligned");
    // Of the eight lanes' rows of each matrix: these slots are not written again before the operation after the next one.
    const uint64_t* rows = emulated::exchange(0xffffffffu, uintptr_t(row), __LINE__);
    int lane = emulated::current % 32;
    for (int k = 0; k < 4; k++) fragments[k] = ((const unsigned*)rows[8 * k + lane / 4])[lane % 4];
}
inline int opaque(int x) {
    return x;
}
inline long long again(long long x) {
    return x;
}
UNSEEN inline unsigned largest(unsigned x) {
    uint64_t* slots = emulated::exchange(0xffffffffu, x, __LINE__);
    unsigned most = 0;
    for (int lane = 0; lane < 32; lane++) most = unsigned(slots[lane]) > most ? unsigned(slots[lane]) : most;
    return most;
}
// Only that there is memory at all: a device would not mind.
UNSEEN inline void fetch(const void* at) {
    (void)*(const volatile char*)at;
}
inline void copy_ahead(void* to, const void* from) {
    emulated::Copies& mine = emulated::copies[emulated::current];
    if ((uintptr_t(to) | uintptr_t(from)) % 16) emulated::fail("a copy of 16 bytes that are not aligned");
    if (mine.count == 256) emulated::fail("more copies under way than this emulation holds");
    mine.list[mine.count++] = {(unsigned*)to, (const unsigned*)from, mine.groups};
    for (int k = 0; k < 4; k++) ((unsigned*)to)[k] = 0xffffffffu;
}
inline void end_copies() {
    emulated::copies[emulated::current].groups++;
}
template <int LEFT>
void await_copies() {
    emulated::Copies& mine = emulated::copies[emulated::current];
    int left = 0;
    for (int c = 0; c < mine.count; c++) {
        auto copy = mine.list[c];
        if (copy.group < mine.groups - LEFT)
            for (int k = 0; k < 4; k++) copy.to[k] = copy.from[k];
        else
            mine.list[left++] = copy;
    }
    mine.count = left;
}

// One of these per kernel, behind the kernel's source.
#define EMULATED_KERNEL(name, most_threads)                                                                               \
    extern "C" const char* signature_##name() {                                                                           \
        return emulated::signature(name);                                                                                 \
    }                                                                                                                     \
    extern "C" const char* launch_##name(void** arguments, long grid, long block, long shared_bytes, unsigned long seed,  \
                                         char** stacks) {                                                                 \
        return emulated::launch(name, dynamic_shared, arguments, grid, block, shared_bytes, seed, stacks,                 \
                                sizeof(REAL) == 4, most_threads);                                                         \
    }

// A device refuses a wide access at a narrow address. Sanitizers look at the access, and not all at a copy of an object.
template <class To, class From>
UNSEEN To cast_to_aligned(From* from) {
    if (uintptr_t(from) % alignof(std::remove_pointer_t<To>)) emulated::fail("a wide access at a narrow address");
    return reinterpret_cast<To>(from);
}
#define reinterpret_cast cast_to_aligned

#endif
