// common/ptx.cuh in the emulator: the same names, with what the PTX ISA says of them in plain C++.
#pragma once

#include "simt/warp.h"

namespace lmm {

// One description of half and bf16 for the templates below.
template <class T>
float to_float(T value);
template <>
inline float to_float<__nv_bfloat16>(__nv_bfloat16 value) { return __bfloat162float(value); }
template <>
inline float to_float<__half>(__half value) { return __half2float(value); }
template <>
inline float to_float<float>(float value) { return value; }

template <class T>
T from_float(float value);
template <>
inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }
template <>
inline __half from_float<__half>(float value) { return __float2half_rn(value); }
template <>
inline float from_float<float>(float value) { return value; }

template <class T>
uint32_t pack2(float low, float high) {
    return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
template <class T>
float2 unpack2(uint32_t pair) {
    return {to_float<T>(T{static_cast<uint16_t>(pair)}), to_float<T>(T{static_cast<uint16_t>(pair >> 16)})};
}

inline float exp2_fast(float x) { return simt::without_subnormal(std::exp2(simt::without_subnormal(x))); }
inline float log2_fast(float x) { return std::log2(simt::without_subnormal(x)); }

}  // namespace lmm

namespace simt {

inline void check_aligned(const char* name, const void* address) {
    if (reinterpret_cast<uintptr_t>(address) % 16) throw Fault{text("%s: address %p is no multiple of 16 bytes", name, address)};
}

inline void check_shared(const char* name, const void* address) {
    check_aligned(name, address);
    if (shared_memory().holds(address, 16)) return;
    const SharedArray* near = shared_memory().fenced_at(address);
    throw Fault{text("%s: ", name) + (near ? near->where(address) : text("address %p is not in shared memory", address))};
}

// ---- mma ---------------------------------------------------------------------------------------------------------------------------

struct MmaSlot {
    const uint32_t* a;
    const uint32_t* b;
    float* d;
};

// Gathers the lanes' fragments into matrices, multiplies with one fp32 rounding for each product added, and hands the result back.
template <class T>
void multiply(MmaSlot** lanes) {
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, pair = 2 * (lane % 4);
        for (int i = 0; i < 4; ++i) {
            const float2 values = lmm::unpack2<T>(lanes[lane]->a[i]);
            const int row = group + i % 2 * 8, column = pair + i / 2 * 8;
            a[row][column] = values.x, a[row][column + 1] = values.y;
            d[group + i / 2 * 8][pair + i % 2] = lanes[lane]->d[i];
        }
        for (int i = 0; i < 2; ++i) {
            const float2 values = lmm::unpack2<T>(lanes[lane]->b[i]);
            b[pair + 8 * i][group] = values.x, b[pair + 8 * i + 1][group] = values.y;
        }
    }
    for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < 16; ++k) {
            for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, pair = 2 * (lane % 4);
        for (int i = 0; i < 4; ++i) lanes[lane]->d[i] = d[group + i / 2 * 8][pair + i % 2];
    }
    ++counters.mma;
}

// ---- ldmatrix ----------------------------------------------------------------------------------------------------------------------

struct RowSlot {
    const void* address;
    uint16_t row[8];
    uint32_t* r;
};

// How many of the eight rows of one matrix wait for another that lies in the same 16 bytes of the 128-byte bank line.
inline int bank_conflicts(RowSlot** rows) {
    int most = 0;
    for (uintptr_t chunk = 0; chunk < 8; ++chunk) {
        uintptr_t seen[8];
        int distinct = 0;
        for (int i = 0; i < 8; ++i) {
            const uintptr_t place = reinterpret_cast<uintptr_t>(rows[i]->address) / 16;
            if (place % 8 == chunk && std::find(seen, seen + distinct, place) == seen + distinct) seen[distinct++] = place;
        }
        most = std::max(most, distinct);
    }
    return most - 1;
}

template <int MATRICES>
void load_matrices(const Meeting& meeting, uint32_t* r, const void* address, bool transposed) {
    RowSlot mine{address, {}, r};
    const bool reads = running_lane() < 8 * MATRICES;
    if (reads) check_shared(meeting.name, address);
    const bool now = schedule().read_on_arrival();
    if (reads && now) std::memcpy(mine.row, address, 16);
    meet(meeting, mine, [=](RowSlot** lanes) {
        for (int lane = 0; lane < 8 * MATRICES && !now; ++lane) std::memcpy(lanes[lane]->row, lanes[lane]->address, 16);
        for (int i = 0; i < MATRICES; ++i) {
            RowSlot** const rows = lanes + 8 * i;
            counters.ldmatrix_conflicts += bank_conflicts(rows);
            for (int lane = 0; lane < 32; ++lane) {
                const int major = lane / 4, minor = lane % 4 * 2;
                const uint32_t low = transposed ? rows[minor]->row[major] : rows[major]->row[minor];
                const uint32_t high = transposed ? rows[minor + 1]->row[major] : rows[major]->row[minor + 1];
                lanes[lane]->r[i] = low | high << 16;
            }
        }
        ++counters.ldmatrix;
    });
}

// ---- cp.async ----------------------------------------------------------------------------------------------------------------------

inline void land(const Copy& copy) {
    if (copy.valid) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
}

inline void land_all_but(uint64_t pending) {
    Thread& self = *cta().running;
    const auto lands = [&](const Copy& copy) { return copy.group + pending < self.open_group; };
    for (const Copy& copy : self.copies) {
        if (lands(copy)) land(copy);
    }
    self.copies.erase(std::remove_if(self.copies.begin(), self.copies.end(), lands), self.copies.end());
}

}  // namespace simt

namespace lmm {

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], LMM_SIMT_HERE) {
    simt::MmaSlot mine{a, b, d};
    simt::meet({"mma_m16n8k16", ~0u, true, file, line}, mine, [](simt::MmaSlot** lanes) { simt::multiply<T>(lanes); });
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* smem_row, LMM_SIMT_HERE) {
    simt::load_matrices<4>({"ldmatrix_x4", ~0u, true, file, line}, r, smem_row, false);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* smem_row, LMM_SIMT_HERE) {
    simt::load_matrices<4>({"ldmatrix_x4_trans", ~0u, true, file, line}, r, smem_row, true);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* smem_row, LMM_SIMT_HERE) {
    simt::load_matrices<2>({"ldmatrix_x2", ~0u, true, file, line}, r, smem_row, false);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* smem_row, LMM_SIMT_HERE) {
    simt::load_matrices<2>({"ldmatrix_x2_trans", ~0u, true, file, line}, r, smem_row, true);
}

inline void cp_async_16(void* smem, const void* global, bool valid) {
    simt::check_shared("cp_async_16", smem);
    if (valid) simt::check_aligned("cp_async_16", global);
    simt::Thread& self = *simt::cta().running;
    const simt::Copy copy{smem, global, valid, self.open_group};
    if (simt::schedule().copy_now()) simt::land(copy);
    else self.copies.push_back(copy);
    ++(valid ? simt::counters.copies : simt::counters.zero_fills);
}
inline void cp_async_commit() { ++simt::cta().running->open_group; }
template <int PENDING>
void cp_async_wait() { simt::land_all_but(PENDING); }

// Others go on before the first look, and right after a release: whoever relies on being first is then late.
inline void wait_until(const int32_t* place, int32_t value, LMM_SIMT_HERE) {
    const simt::Awaited awaited{place, value, file, line};
    simt::cta().pause();
    while (!awaited.there()) simt::cta().await(awaited);
}
inline void release(int32_t* place, int32_t value) {
    *static_cast<volatile int32_t*>(place) = value;
    simt::cta().pause();
}
inline void add_in_memory(float* place, float value) { *place += value; }
inline void add_in_memory(float* place, float4 value) {
    simt::check_aligned("add_in_memory", place);
    place[0] += value.x, place[1] += value.y, place[2] += value.z, place[3] += value.w;
}

inline uint4 load_stream_16(const void* global) {
    simt::check_aligned("load_stream_16", global);
    ++simt::counters.stream_loads;
    uint4 value;
    std::memcpy(&value, global, 16);
    return value;
}
inline uint4 load_stream_16(const void* global, bool valid) {
    return valid ? load_stream_16(global) : uint4{0, 0, 0, 0};
}
inline void store_stream_16(void* global, uint4 value) {
    simt::check_aligned("store_stream_16", global);
    ++simt::counters.stream_stores;
    std::memcpy(global, &value, 16);
}

}  // namespace lmm
