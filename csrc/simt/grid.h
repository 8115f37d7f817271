// A launch: the CTAs of a grid begin in the order the seed gives, as many at a time as it says, and take turns at getting on.
#pragma once

#include "simt/crash.h"
#include "simt/cta.h"

#include <mutex>

namespace simt {

// The CTAs that have a place to run. Others begin when one has returned, as on hardware: who waits for one that hasn't begun may wait for ever.
class Residents {
  public:
    Residents(dim3 grid, dim3 block, size_t smem_bytes, const std::function<void()>& kernel)
        : grid_(grid), block_(block), smem_bytes_(smem_bytes), kernel_(kernel) {
        schedule().arrange(order_, size_t{grid.x} * grid.y * grid.z);
        for (const auto& cta : kept()) free_.push_back(cta.get());
    }

    // False when a CTA did what is refused, or none gets on; last_fault() says what.
    bool run() {
        for (;;) {
            while (running_.size() < schedule().resident() && begun_ < order_.size()) begin(order_[begun_++]);
            if (running_.empty()) return true;
            std::vector<size_t> able = those([](const Resident& resident) { return !resident.waits && !resident.paused; });
            if (able.empty()) able = those([](const Resident& resident) { return !resident.waits; });
            if (able.empty()) return deadlock();
            if (!get_on(able[schedule().choose_cta(able.size())])) return false;
        }
    }

  private:
    struct Resident {
        Cta* cta;
        bool waits = false, paused = false;
    };

    template <class Condition>
    std::vector<size_t> those(Condition condition) const {
        std::vector<size_t> found;
        for (size_t i = 0; i < running_.size(); ++i) {
            if (condition(running_[i])) found.push_back(i);
        }
        return found;
    }

    void begin(uint64_t number) {
        const uint64_t row = number / grid_.x;
        const uint3 index{unsigned(number % grid_.x), unsigned(row % grid_.y), unsigned(row / grid_.y)};
        if (free_.empty()) {
            kept().push_back(std::make_unique<Cta>());
            free_.push_back(kept().back().get());
        }
        running_.push_back({free_.back()});
        free_.pop_back();
        running_.back().cta->begin(kernel_, block_, index, smem_bytes_);
    }

    bool get_on(size_t chosen) {
        const Step step = running_[chosen].cta->step();
        if (step == Step::REFUSED) return false;
        if (step == Step::WAITS) {
            running_[chosen].waits = true;
            return true;
        }
        for (Resident& resident : running_) resident.waits = resident.paused = false;  // what they wait for may be there now
        running_[chosen].paused = step == Step::PAUSED;
        if (step == Step::RETURNED) {
            free_.push_back(running_[chosen].cta);
            running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(chosen));
        }
        return true;
    }

    bool deadlock() const {
        std::string found = text("deadlock: each of the %zu CTAs that have begun waits for another, and %zu have no place to begin: ", running_.size(),
                                 order_.size() - begun_);
        for (const Resident& resident : running_) found += resident.cta->where() + resident.cta->who_waits();
        last_fault() = found;
        return false;
    }

    // CTAs and their stacks outlive launches; one that was left in the middle begins anew.
    static std::vector<std::unique_ptr<Cta>>& kept() {
        static std::vector<std::unique_ptr<Cta>> ctas;
        return ctas;
    }

    const dim3 grid_, block_;
    const size_t smem_bytes_;
    const std::function<void()>& kernel_;
    std::vector<uint64_t> order_;
    size_t begun_ = 0;
    std::vector<Resident> running_;
    std::vector<Cta*> free_;
};

// False when a CTA did what is refused; last_fault() says what.
inline bool run_grid(dim3 grid, dim3 block, size_t smem_bytes, const std::function<void()>& kernel) {
    static std::mutex one_launch_at_a_time;
    std::lock_guard<std::mutex> lock(one_launch_at_a_time);
    CrashWatch watch;
    schedule() = Schedule::from_environment();
    gridDim = grid;
    const bool done = Residents(grid, block, smem_bytes, kernel).run();
    current_cta() = nullptr;
    return done;
}

}  // namespace simt
