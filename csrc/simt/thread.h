// The parts of a CTA: threads, warps, and the places where they meet.
#pragma once

#include "simt/fault.h"
#include "simt/fiber.h"
#include "simt/language.h"

#include <memory>
#include <vector>

namespace simt {

// What was done since the last reset: work that a test can hold a kernel to.
struct Counters {
    uint64_t ctas, barriers, shuffles, mma, ldmatrix, ldmatrix_conflicts, copies, zero_fills, stream_loads, stream_stores;
};
inline Counters counters{};

// A place in the source where threads meet. `aligned` is PTX's word: they must be at the same instruction there.
struct Meeting {
    const char* name;
    uint32_t mask;
    bool aligned;
    const char* file;
    int line;

    bool is(const Meeting& other) const {
        if (mask != other.mask || std::strcmp(name, other.name) != 0) return false;
        return !aligned || (line == other.line && std::strcmp(file, other.file) == 0);
    }
    std::string where() const { return text("%s (%s:%d)", name, file, line); }
};

// Default arguments that fill in the caller's place.
#define LMM_SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// The lanes of a warp that have come to a meeting, and what each brought.
struct Gathering {
    Meeting meeting;
    uint32_t arrived;
    void* brought[32];
};

struct Copy {
    void* to;
    const void* from;
    bool valid;
    uint64_t group;
};

// A place in global memory that another CTA is to write.
struct Awaited {
    const int32_t* place;
    int32_t value;
    const char* file;
    int line;

    bool there() const { return *static_cast<const volatile int32_t*>(place) == value; }
};

struct Thread {
    uint3 index{0, 0, 0};
    unsigned warp = 0, lane = 0;
    bool done = false;
    const Meeting* at_barrier = nullptr;
    const Awaited* awaits = nullptr;
    std::vector<Copy> copies;  // cp.async not yet landed
    uint64_t open_group = 0;   // what the next commit closes
    Context context;
    FencedPages stack{128 * 1024};

    uint32_t bit() const { return 1u << lane; }
};

struct Warp {
    std::vector<Thread*> lanes;
    uint32_t ready = 0, done = 0;
    std::vector<Gathering> gatherings;
};

}  // namespace simt
