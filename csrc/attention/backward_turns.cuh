// dq, added up over the CTAs of a head in the order of their tiles of keys: the same bits on every run, and neither copies nor atomics in no order.
//
// Each warp's part of a block has a turn of its own, a number that says which tile may add. The first tile writes, those after it add in memory, and the last
// one reads, adds what it holds and writes dq in its dtype: nothing is cleared before and nothing converted afterwards. A block that only one tile sees
// never leaves the registers.
//
// A warp waits only for tiles before its own, whose CTAs have begun, since tickets are dealt in that order (TicketOrder): the CTA with the least ticket that
// isn't done waits for nobody, so somebody always gets on, however many CTAs there is room for. All tiles visit the blocks of a head in one order, so a
// wait is long only where several begin at once.
#pragma once

#include "attention/backward_products.cuh"
#include "attention/backward_walk.cuh"

namespace lmm {

// Values that an addition in memory takes at once. Lanes then lie side by side. The emulator runs both, by head dim.
#if defined(LMM_SIMT)
template <class Tile>
constexpr int kAddedAtOnce = Tile::kWidth == 64 ? 4 : 1;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
template <class Tile>
constexpr int kAddedAtOnce = 4;
#else
template <class Tile>
constexpr int kAddedAtOnce = 1;
#endif

template <class T, class Tile>
class QueryTurns {
  public:
    __device__ QueryTurns(const BackwardCall& call, const KeyTile& tile, int warp)
        : call_(call), tile_(tile), warp_(warp), lane_(threadIdx.x % 32), number_(tile.first_key / Tile::kKeys), next_(nullptr) {}

    // Add a warp's part of the block of a visit; who comes next learns it from pass_on.
    __device__ void add(QueryPart<Tile>& part, const Visit& visit) {
        int head = tile_.kv_head * (call_.args.heads / call_.args.kv_heads) + visit.member;
        int64_t place = (static_cast<int64_t>(head) * call_.slots + tile_.first_slot + visit.block) * Tile::kRoleWarps + warp_;
        float* sums = call_.work.sums + place * kPartSize + lane_ * kAddedAtOnce<Tile>;
        int32_t* turn = call_.work.turns + place;
        bool last = visit.ends.greatest <= tile_.first_key + Tile::kKeys;
        if (number_ > 0) {
            if (lane_ == 0) wait_until(turn, number_);
            __syncwarp();  // what lane 0 has seen happened before what the others do
        }
        if (last) {
            if (number_ > 0) each(part, sums, [](float& value, float* in_memory) { value += __ldcg(in_memory); });
            write(part, visit.block, head);
            return;
        }
        if (number_ == 0) {
            each(part, sums, [](float& value, float* in_memory) { __stcg(in_memory, value); });
        } else {
            add_each(part, sums);
        }
        next_ = turn;
    }

    // Let the next tile add. Best done after other work: what was added is then in memory, and nobody waits for it here.
    __device__ void pass_on() {
        if (next_ == nullptr) return;
        __syncwarp();  // all lanes have added
        if (lane_ == 0) release(next_, number_ + 1);
        next_ = nullptr;
    }

  private:
    static constexpr int kPartSize = Tile::kPartRows * Tile::kPartColumns;

    template <class Do>
    static __device__ void each(QueryPart<Tile>& part, float* sums, Do act) {
#pragma unroll
        for (int i = 0; i < kPartSize / 32; ++i) act(part[i / 4 / 8][i / 4 % 8][i % 4], sums + at(i));
    }

    static __device__ void add_each(QueryPart<Tile>& part, float* sums) {
        if constexpr (kAddedAtOnce<Tile> == 4) {
#pragma unroll
            for (int i = 0; i < kPartSize / 32; i += 4) {
                const float (&four)[4] = part[i / 4 / 8][i / 4 % 8];
                add_in_memory(sums + at(i), make_float4(four[0], four[1], four[2], four[3]));
            }
        } else {
            each(part, sums, [](float& value, float* in_memory) { add_in_memory(in_memory, value); });
        }
    }

    // Where value i of a lane lies, from the lane's first.
    static constexpr __host__ __device__ int at(int i) { return i / kAddedAtOnce<Tile> * 32 * kAddedAtOnce<Tile> + i % kAddedAtOnce<Tile>; }

    __device__ void write(const QueryPart<Tile>& part, int block, int head) const {
        const LmmAttentionBackwardArgs& args = call_.args;
        int first = block * Tile::kRows + Tile::part_row(warp_) + lane_ / 4;
        int64_t stride = static_cast<int64_t>(args.heads) * Tile::kWidth;
        T* dq = static_cast<T*>(args.dq) + (tile_.own.first_row + first) * stride + head * Tile::kWidth + Tile::part_column(warp_) + lane_ % 4 * 2;
#pragma unroll
        for (int atom = 0; atom < Tile::kPartRows / kAtom; ++atom) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int row = atom * kAtom + half * 8;
                if (first + row >= tile_.own.rows) continue;
#pragma unroll
                for (int i = 0; i < Tile::kPartColumns / 8; ++i) {
                    const float (&four)[4] = part[atom][i];
                    *reinterpret_cast<uint32_t*>(dq + row * stride + i * 8) = pack2<T>(four[half * 2] * args.scale, four[half * 2 + 1] * args.scale);
                }
            }
        }
    }

    const BackwardCall& call_;
    const KeyTile& tile_;
    const int warp_, lane_, number_;
    int32_t* next_;
};

}  // namespace lmm
