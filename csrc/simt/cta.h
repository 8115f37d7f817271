// One CTA: its threads as fibers, warp by warp, and the scheduler that runs them. It gets on a step at a time, so that several can be under way (grid.h).
#pragma once

#include "simt/schedule.h"
#include "simt/shared.h"
#include "simt/thread.h"

#include <exception>
#include <functional>

namespace simt {

// What came of a step. PAUSED: others should go on first. WAITS: nothing can move until another CTA writes what is waited for.
enum class Step { MOVED, PAUSED, WAITS, RETURNED, REFUSED };

class Cta {
  public:
    Thread* running = nullptr;

    void begin(const std::function<void()>& kernel, dim3 block, uint3 index, size_t smem_bytes) {
        kernel_ = &kernel;
        index_ = index;
        enter();
        blockDim = block;
        message_.clear();
        first_at_barrier_ = nullptr;
        at_barrier_ = 0;
        live_ = size_t{block.x} * block.y * block.z;
        shared_.begin_cta(smem_bytes);
        warps_.assign((live_ + 31) / 32, Warp{});
        while (threads_.size() < live_) threads_.push_back(std::make_unique<Thread>());
        for (unsigned i = 0; i < live_; ++i) seat(*threads_[i], i);
        phase_over_ = true;
        ++counters.ctas;
    }

    // Goes on up to the next barrier, the next pause, or where nobody can. When something was refused, last_fault() says what.
    Step step() {
        enter();
        if (phase_over_) arrange();
        paused_ = false;
        look_for_awaited();
        bool ran = true, moved = false;
        while (ran && going_on()) moved |= ran = run_warps();
        running = nullptr;
        if (message_.empty() && live_ == 0) message_ = shared_.trespass();
        if (message_.empty() && !ran && !moved && live_ > 0) {
            if (awaiting()) return Step::WAITS;
            message_ = "deadlock: " + who_waits();
        }
        if (message_.empty()) return live_ == 0 ? Step::RETURNED : paused_ ? Step::PAUSED : Step::MOVED;
        last_fault() = where() + message_;
        return Step::REFUSED;
    }

    std::string where() const { return text("block (%u, %u, %u): ", index_.x, index_.y, index_.z); }

    std::string who_waits() const {
        std::string found;
        for (size_t number = 0; number < warps_.size() && found.size() < 400; ++number) {
            const Warp& warp = warps_[number];
            uint32_t at_barrier = 0;
            for (const Thread* thread : warp.lanes) {
                at_barrier |= thread->at_barrier ? thread->bit() : 0;
                if (!thread->awaits) continue;
                const Awaited& awaited = *thread->awaits;
                found += text("warp %zu lane %u waits for %d, found %d (%s:%d); ", number, thread->lane, awaited.value, *awaited.place, awaited.file, awaited.line);
            }
            for (const Gathering& gathering : warp.gatherings) {
                found += text("warp %zu lanes ", number) + lanes_of(gathering.arrived) + " in " + gathering.meeting.where() + "; ";
            }
            if (at_barrier) found += text("warp %zu lanes ", number) + lanes_of(at_barrier) + " at " + first_at_barrier_->where() + "; ";
            if (warp.done) found += text("warp %zu lanes ", number) + lanes_of(warp.done) + " have returned; ";
        }
        return found;
    }

    // For the fiber that runs ---------------------------------------------------------------------------------------------------------

    Warp& warp() { return warps_[running->warp]; }

    // Stays where it is and lets other CTAs go on.
    void pause() {
        paused_ = true;
        leave();
    }

    // Waits for another CTA.
    void await(const Awaited& awaited) {
        running->awaits = &awaited;
        wait();
    }

    // Leaves; somebody makes the lane ready again.
    void wait() {
        warp().ready &= ~running->bit();
        leave();
    }

    // Waits for every thread that has not returned; gives the number of threads that brought `yes`.
    int barrier(const Meeting& meeting, bool yes) {
        if (first_at_barrier_ && !first_at_barrier_->is(meeting)) {
            throw Fault{meeting.where() + " while other threads wait at " + first_at_barrier_->where()};
        }
        if (!first_at_barrier_) first_at_barrier_ = &meeting, yes_ = 0;
        ++at_barrier_;
        yes_ += yes;
        running->at_barrier = &meeting;
        warp().ready &= ~running->bit();
        open_barrier_if_all_are_there();
        leave();
        return found_;  // the next barrier opens only after this thread has come to it
    }

    void refuse(const std::string& what) {
        const uint3 t = running->index;
        if (message_.empty()) message_ = text("thread (%u, %u, %u): ", t.x, t.y, t.z) + what;
    }

    void leave() { switch_to(running->context, scheduler_); }

    void live() {
        try {
            (*kernel_)();
            finish();
        } catch (const Fault& fault) {
            refuse(fault.message);
        } catch (const std::exception& error) {
            refuse(text("exception: %s", error.what()));
        }
        leave();
    }

  private:
    static constexpr size_t POISONED_STACK_BYTES = 16 * 1024;  // as deep as kernels' frames go

    void enter();

    bool going_on() const { return !phase_over_ && !paused_ && message_.empty(); }

    void look_for_awaited() {
        for (Warp& warp : warps_) {
            for (Thread* thread : warp.lanes) {
                if (!thread->awaits || !thread->awaits->there()) continue;
                thread->awaits = nullptr;
                warp.ready |= thread->bit();
            }
        }
    }

    bool awaiting() const {
        for (const Warp& warp : warps_) {
            for (const Thread* thread : warp.lanes) {
                if (thread->awaits) return true;
            }
        }
        return false;
    }

    void seat(Thread& thread, unsigned number);

    // A new order of warps and lanes: at the beginning and after every barrier.
    void arrange() {
        phase_over_ = false;
        schedule().arrange(warp_order_, warps_.size());
        schedule().arrange(lane_order_, 32);
    }

    // Each warp goes as far as it can, or one step where warps take turns. False when none could move.
    bool run_warps() {
        bool ran = false;
        for (unsigned number : warp_order_) {
            Warp& warp = warps_[number];
            while (warp.ready && going_on()) {
                ran = true;
                run_lanes(warp);
                if (schedule().take_turns()) break;
            }
        }
        return ran;
    }

    void run_lanes(Warp& warp) {
        for (unsigned lane : lane_order_) {
            if (!(warp.ready >> lane & 1)) continue;
            running = warp.lanes[lane];
            threadIdx = running->index;
            switch_to(scheduler_, running->context);
            if (!going_on()) return;
        }
    }

    void finish() {
        running->done = true;
        --live_;
        warp().ready &= ~running->bit();
        warp().done |= running->bit();
        for (const Gathering& gathering : warp().gatherings) {
            if (gathering.meeting.mask & running->bit()) throw Fault{"returned while its warp waits for it in " + gathering.meeting.where()};
        }
        open_barrier_if_all_are_there();
    }

    void open_barrier_if_all_are_there() {
        if (at_barrier_ == 0 || at_barrier_ < live_) return;
        for (Warp& warp : warps_) {
            for (Thread* thread : warp.lanes) {
                if (thread->at_barrier) warp.ready |= thread->bit();
                thread->at_barrier = nullptr;
            }
        }
        ++counters.barriers;
        found_ = yes_;
        first_at_barrier_ = nullptr;
        at_barrier_ = 0;
        phase_over_ = true;
    }

    Context scheduler_;
    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Warp> warps_;
    std::vector<unsigned> warp_order_, lane_order_;
    const Meeting* first_at_barrier_ = nullptr;
    size_t at_barrier_ = 0, live_ = 0;
    int yes_ = 0, found_ = 0;  // so far at this barrier; at the last one
    bool phase_over_ = false, paused_ = false;
    std::string message_;
    SharedMemory shared_;
    const std::function<void()>* kernel_ = nullptr;
    uint3 index_{0, 0, 0};
};

// The one that runs; null between launches.
inline Cta*& current_cta() {
    static Cta* current = nullptr;
    return current;
}
inline Cta& cta() { return *current_cta(); }

inline void Cta::enter() {
    current_cta() = this;
    current_shared_memory() = &shared_;
    blockIdx = index_;
}

inline void fiber_entry() { cta().live(); }

inline void Cta::seat(Thread& thread, unsigned number) {
    Warp& warp = warps_[number / 32];
    thread.index = {number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y};
    thread.warp = number / 32;
    thread.lane = number % 32;
    thread.done = false;
    thread.at_barrier = nullptr;
    thread.awaits = nullptr;
    thread.copies.clear();
    thread.open_group = 0;
    warp.lanes.push_back(&thread);
    warp.ready |= thread.bit();
    poison(thread.stack.end() - POISONED_STACK_BYTES, POISONED_STACK_BYTES);
    prepare(thread.context, thread.stack, fiber_entry);
}

}  // namespace simt
