// A launch: the CTAs of a grid, one after the other, in the order the seed gives.
#pragma once

#include "simt/crash.h"
#include "simt/cta.h"

#include <mutex>

namespace simt {

// False when a CTA did what is refused; last_fault() says what.
inline bool run_grid(dim3 grid, dim3 block, size_t smem_bytes, std::function<void()> kernel) {
    static std::mutex one_launch_at_a_time;
    std::lock_guard<std::mutex> lock(one_launch_at_a_time);
    CrashWatch watch;
    Cta& block_state = cta();
    block_state.schedule = Schedule::from_environment();
    block_state.kernel = std::move(kernel);
    gridDim = grid;
    std::vector<uint64_t> order;
    block_state.schedule.arrange(order, size_t{grid.x} * grid.y * grid.z);
    for (uint64_t number : order) {
        const uint64_t row = number / grid.x;
        const uint3 index{unsigned(number % grid.x), unsigned(row % grid.y), unsigned(row / grid.y)};
        if (!block_state.run(block, index, smem_bytes)) return false;
    }
    return true;
}

}  // namespace simt
