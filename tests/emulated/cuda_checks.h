// What a checked build adds to cuda_emulation.h: every read and write of a kernel is looked at.
//
// -fsanitize=thread puts a call before each of them; this file has the functions that are called, in place of the
// sanitizer's library. A shadow of 4-byte cells for the shared memory and for each array knows who wrote and who read
// last: the block, the barriers it had passed, the thread. Errors are, in the words of compute-sanitizer,
//   racecheck   two threads of a block at one cell, one of them writing, with no barrier (or __syncwarp) between;
//               two blocks at one cell of an array, one of them writing: nothing orders blocks of a launch; atomics of
//               any two threads may meet at a cell, but no atomic may meet another's plain read or write;
//   initcheck   a read of shared memory that nobody of this block has written, static or dynamic;
//   memcheck    an access behind the dynamic shared memory that was asked for, however far.
// Shuffles do not order memory, so they count for nothing here. exp2 and log2 get the errors of the device's.

#ifndef CUDA_CHECKS_H
#define CUDA_CHECKS_H

#include <link.h>

// What compilers fill in, and <source_location> of C++20 would declare.
namespace std {
struct source_location {
    struct __impl {
        const char *_M_file_name, *_M_function_name;
        unsigned _M_line, _M_column;
    };
};
}  // namespace std

namespace emulated {

enum Access { READS, WRITES, ATOMICALLY };

struct Visit {
    unsigned block, epoch, warp_epoch, thread;
    bool atomic;
};
struct Cell {
    Visit write, read;
    bool several_threads, several_warps, several_blocks;  // that read it since it was written
    bool atomics_apart;                                   // by several blocks
};
struct Region {
    uintptr_t start;
    size_t size, capacity;
    Cell* cells;
};

constexpr int MOST_REGIONS = 64;
constexpr size_t STATIC_LIMIT = 64 << 10;  // of all kernels of a file together
inline Region arrays[MOST_REGIONS];
inline int array_count, last_array;
inline Cell shared_cells[(SHARED_LIMIT + GUARD + STATIC_LIMIT) / 4];
// Shared memory of both kinds is what the library has of memory for each thread; a compiler puts either kind first.
inline uintptr_t shared_start, shared_end, dynamic_start;
inline size_t dynamic_bytes;
inline unsigned serial, first_serial, epoch, warp_epochs[32];
inline bool inside;  // a kernel, and not this emulation

UNSEEN inline bool unordered(const Visit& before, bool shared) {
    if (before.block != serial) return !shared && before.block >= first_serial;
    if (before.thread == current || before.epoch != epoch) return false;
    return before.thread / 32 != current / 32 || before.warp_epoch == warp_epochs[current / 32];
}

UNSEEN inline void visit(Cell& cell, bool shared, Access access) {
    bool writes = access != READS, atomic = access == ATOMICALLY, met = unordered(cell.write, shared);
    bool apart = cell.atomics_apart && cell.write.block >= first_serial;
    if (atomic ? met && !cell.write.atomic : met || apart)
        fail(writes ? "two threads write to one place with no barrier between" : "a read and a write of one place with no barrier between");
    unsigned oldest = shared ? serial : first_serial;
    bool known = cell.read.block >= oldest && cell.read.block;
    if (writes) {
        bool read = known && (unordered(cell.read, shared) || (cell.several_blocks && !shared) ||
                               (cell.several_threads && cell.read.block == serial && cell.read.epoch == epoch &&
                                (cell.several_warps || cell.read.warp_epoch == warp_epochs[current / 32])));
        if (read) fail("a read and a write of one place with no barrier between");
        unsigned before = cell.write.block;
        cell.write = {serial, epoch, warp_epochs[current / 32], current, atomic};
        cell.read.block = 0;
        cell.atomics_apart = atomic && (apart || (met && before != serial));
        return;
    }
    if (shared && cell.write.block != serial) fail("a read of shared memory that nobody has written");
    bool same = known && cell.read.block == serial && cell.read.epoch == epoch;
    cell.several_threads = same && (cell.several_threads || cell.read.thread != current);
    cell.several_warps = same && (cell.several_warps || cell.read.thread / 32 != current / 32);
    cell.several_blocks = known && (cell.several_blocks || cell.read.block != serial);
    cell.read = {serial, epoch, warp_epochs[current / 32], current, false};
}

UNSEEN inline void look(void* address, size_t size, Access access) {
    uintptr_t at = uintptr_t(address);
    if (!inside || at - uintptr_t(fibers[current].stack) < STACK) return;  // most are of a thread's own memory
    Cell* cells = nullptr;
    size_t offset = 0;
    bool shared = true;
    if (at - shared_start < shared_end - shared_start) {
        cells = shared_cells, offset = at - shared_start;
        if (at - dynamic_start < SHARED_LIMIT + GUARD && at - dynamic_start + size > dynamic_bytes)
            fail(access ? "a write behind the dynamic shared memory" : "a read behind the dynamic shared memory");
    } else {
        shared = false;
        for (int tried = 0, k = last_array; tried < array_count; tried++, k = k + 1 < array_count ? k + 1 : 0)
            if (at - arrays[k].start < arrays[k].size) {
                last_array = k, cells = arrays[k].cells, offset = at - arrays[k].start;
                break;
            }
    }
    if (!cells) return;
    for (size_t cell = offset / 4; cell <= (offset + size - 1) / 4; cell++) visit(cells[cell], shared, access);
}

UNSEEN inline int find_shared(dl_phdr_info* info, size_t, void* own) {
    bool ours = false;
    for (int k = 0; k < info->dlpi_phnum; k++) {
        const auto& part = info->dlpi_phdr[k];
        ours = ours || (part.p_type == PT_LOAD && uintptr_t(own) - (info->dlpi_addr + part.p_vaddr) < part.p_memsz);
    }
    for (int k = 0; ours && k < info->dlpi_phnum; k++)
        if (info->dlpi_phdr[k].p_type == PT_TLS) {
            shared_start = uintptr_t(info->dlpi_tls_data);
            shared_end = shared_start + info->dlpi_phdr[k].p_memsz;
        }
    return ours;
}

UNSEEN inline void start_launch(unsigned char* shared, size_t bytes) {
    static char here;
    dynamic_start = uintptr_t(shared), dynamic_bytes = bytes;
    dl_iterate_phdr(find_shared, &here);
    first_serial = serial + 1;
}

// Nothing is left of the block before: reading it would give what is never right.
UNSEEN inline void start_block() {
    serial++, epoch = 0;
    for (unsigned& own : warp_epochs) own = 0;
    uintptr_t end = dynamic_start + SHARED_LIMIT + GUARD;
    if (dynamic_start > shared_start) memset((void*)shared_start, 0xff, dynamic_start - shared_start);
    if (shared_end > end) memset((void*)end, 0xff, shared_end - end);
}

UNSEEN inline void set_regions(long count, void** starts, long* sizes) {
    array_count = int(count), last_array = 0;
    for (int k = 0; k < array_count; k++) {
        size_t cells = size_t(sizes[k]) / 4 + 2;
        if (arrays[k].capacity < cells) {
            free(arrays[k].cells);
            arrays[k].cells = (Cell*)calloc(cells, sizeof(Cell)), arrays[k].capacity = cells;
        } else {
            memset((void*)arrays[k].cells, 0, cells * sizeof(Cell));
        }
        arrays[k].start = uintptr_t(starts[k]), arrays[k].size = size_t(sizes[k]);
    }
}

// What callers.py makes the last parameter of helpers: while it lives, the path of its thread tells its call, by line and
// column, from others.
class Caller {
    unsigned before;

public:
    UNSEEN Caller(const void* where) : before(fibers[current].path) {
        auto at = static_cast<const std::source_location::__impl*>(where);
        fibers[current].path = (before * 1000003u + at->_M_line) * 1000003u + at->_M_column;
    }
    UNSEEN ~Caller() {
        fibers[current].path = before;
    }
    Caller(const Caller&) = delete;
};

// x with an error of so many units in the last place at most, by a number that x decides.
template <class T, class Bits>
UNSEEN T off_by(T exact, T x, int units) {
    Bits bits, key;
    memcpy(&bits, &exact, sizeof bits);
    memcpy(&key, &x, sizeof key);
    if (!(exact - exact == 0) || exact == 0 || x == 0) return exact;
    uint64_t mixed = (uint64_t(key) ^ 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    bits += Bits(int(mixed >> 40) % (2 * units + 1) - units);
    memcpy(&exact, &bits, sizeof bits);
    return exact;
}
UNSEEN inline float device_exp2f(float x) {
    return off_by<float, uint32_t>(::exp2f(x), x, 2);
}
UNSEEN inline float device_log2f(float x) {
    return off_by<float, uint32_t>(::log2f(x), x, 1);
}
// Off by 2^-22 at most between 0.5 and 2, else by units in the last place.
UNSEEN inline float device_fast_log2f(float x) {
    if (!(x > 0.5f && x < 2.0f)) return off_by<float, uint32_t>(::log2f(x), x, 2);
    float share = 4 * off_by<float, uint32_t>(1.5f, x, 1 << 21) - 6;  // from -1 to 1
    return float(::log2(double(x)) + share * (0x1p-22 - 0x1p-25));  // which rounds by 2^-25
}
// Off by 2 units, and 0 for a large divisor.
UNSEEN inline float device_fdividef(float x, float y) {
    return fabsf(y) > 0x1p126f && y - y == 0 ? 0.0f * x : off_by<float, uint32_t>(x / y, y, 2);
}
UNSEEN inline double device_exp2(double x) {
    return off_by<double, uint64_t>(::exp2(x), x, 1);
}
UNSEEN inline double device_log2(double x) {
    return off_by<double, uint64_t>(::log2(x), x, 1);
}

}  // namespace emulated

#define SEEN(size)                                                                                       \
    extern "C" UNSEEN void __tsan_read##size(void* at) { emulated::look(at, size, emulated::READS); }     \
    extern "C" UNSEEN void __tsan_write##size(void* at) { emulated::look(at, size, emulated::WRITES); }    \
    extern "C" UNSEEN void __tsan_unaligned_read##size(void* at) { emulated::look(at, size, emulated::READS); }  \
    extern "C" UNSEEN void __tsan_unaligned_write##size(void* at) { emulated::look(at, size, emulated::WRITES); }
SEEN(1)
SEEN(2)
SEEN(4)
SEEN(8)
SEEN(16)
extern "C" UNSEEN void __tsan_read_range(void* at, size_t size) {
    emulated::look(at, size, emulated::READS);
}
extern "C" UNSEEN void __tsan_write_range(void* at, size_t size) {
    emulated::look(at, size, emulated::WRITES);
}
// clang hands whole objects to these.
extern "C" UNSEEN void* __tsan_memcpy(void* to, const void* from, size_t size) {
    emulated::look((void*)from, size, emulated::READS);
    emulated::look(to, size, emulated::WRITES);
    return memcpy(to, from, size);
}
extern "C" UNSEEN void* __tsan_memmove(void* to, const void* from, size_t size) {
    emulated::look((void*)from, size, emulated::READS);
    emulated::look(to, size, emulated::WRITES);
    return memmove(to, from, size);
}
extern "C" UNSEEN void* __tsan_memset(void* to, int value, size_t size) {
    emulated::look(to, size, emulated::WRITES);
    return memset(to, value, size);
}
extern "C" UNSEEN void __tsan_func_entry(void*) {}
extern "C" UNSEEN void __tsan_func_exit() {}
extern "C" UNSEEN void __tsan_init() {}
extern "C" UNSEEN void emulated_regions(long count, void** starts, long* sizes) {
    emulated::set_regions(count, starts, sizes);
}

#define exp2f emulated::device_exp2f
#define log2f emulated::device_log2f
#define __log2f emulated::device_fast_log2f
#define __fdividef emulated::device_fdividef
#define exp2 emulated::device_exp2
#define log2 emulated::device_log2

#endif
