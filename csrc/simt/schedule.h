// What hardware leaves open, decided by LMM_SIMT_SEED: each decision has a plain choice, its opposite, and a random one.
//
//   seed   order of warps and lanes     warps take turns at        cp.async lands        ldmatrix reads              CTAs at a time, who gets on
//   0      as numbered                  barriers                   at the wait           when all lanes are there    one
//   1      reversed                     barriers                   at once               when its lane arrives       three, the last that can
//   2..    random, anew each barrier    barriers | collectives     by seed, or mixed     by seed                     two to four, anyone, for a while
//
// LMM_SIMT_COPIES=late|early overrides the moment of cp.async, LMM_SIMT_RESIDENT=1..8 the number of CTAs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

namespace simt {

enum class Order { NUMBERED, REVERSED, RANDOM };
enum class Moment { LATE, EARLY, MIXED };

class Schedule {
  public:
    static Schedule from_environment() {
        Schedule schedule;
        const char* seed = std::getenv("LMM_SIMT_SEED");
        schedule.choose(seed ? std::strtoull(seed, nullptr, 10) : 0);
        if (const char* copies = std::getenv("LMM_SIMT_COPIES")) {
            schedule.copies_ = std::strcmp(copies, "early") == 0 ? Moment::EARLY : Moment::LATE;
        }
        if (const char* resident = std::getenv("LMM_SIMT_RESIDENT")) schedule.resident_ = std::clamp(std::atoi(resident), 1, 8);
        return schedule;
    }

    // A permutation of 0..count-1 for warps, lanes or CTAs.
    template <class Int>
    void arrange(std::vector<Int>& order, size_t count) {
        order.resize(count);
        std::iota(order.begin(), order.end(), Int{0});
        if (order_ == Order::REVERSED) std::reverse(order.begin(), order.end());
        if (order_ != Order::RANDOM) return;
        for (size_t left = count; left > 1; --left) std::swap(order[left - 1], order[next() % left]);
    }

    // Which of `count` CTAs that can get on does, up to its next barrier or pause. They are in the order in which they began.
    size_t choose_cta(size_t count) {
        if (order_ == Order::NUMBERED) return turn_++ % count;
        if (order_ == Order::REVERSED) return count - 1;
        if (steps_left_ == 0) favourite_ = next(), steps_left_ = next() % 12;
        else --steps_left_;
        return favourite_ % count;
    }

    size_t resident() const { return resident_; }
    bool take_turns() const { return take_turns_; }
    bool copy_now() { return copies_ == Moment::EARLY || (copies_ == Moment::MIXED && next() % 2); }
    bool read_on_arrival() const { return read_on_arrival_; }

  private:
    void choose(uint64_t seed) {
        state_ = seed * 0x9e3779b97f4a7c15u + 1;
        order_ = seed == 0 ? Order::NUMBERED : seed == 1 ? Order::REVERSED : Order::RANDOM;
        take_turns_ = seed > 1 && seed / 2 % 2 == 0;  // seeds 4, 5, 8, 9, ...
        copies_ = seed < 2 ? (seed ? Moment::EARLY : Moment::LATE) : Moment(seed % 3);
        read_on_arrival_ = seed % 2;
        resident_ = seed == 0 ? 1 : 2 + seed % 3;
    }

    uint64_t next() {  // splitmix64
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    uint64_t state_ = 1;
    Order order_ = Order::NUMBERED;
    Moment copies_ = Moment::LATE;
    bool take_turns_ = false;
    bool read_on_arrival_ = false;
    size_t resident_ = 1;
    uint64_t turn_ = 0, favourite_ = 0, steps_left_ = 0;
};

// Of the launch that runs.
inline Schedule& schedule() {
    static Schedule instance;
    return instance;
}

}  // namespace simt
