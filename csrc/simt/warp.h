// Warp collectives: a lane that comes to one waits, and the last lane to come does the work for all.
#pragma once

#include "simt/cta.h"

namespace simt {

// The gathering that the running lane joins; a new one when it is the first.
inline Gathering& join(const Meeting& meeting) {
    const uint32_t me = cta().running->bit();
    Warp& warp = cta().warp();
    const uint32_t exist = warp.lanes.size() == 32 ? ~0u : (1u << warp.lanes.size()) - 1;
    if (!(meeting.mask & me)) throw Fault{meeting.where() + ": the mask leaves out lane " + lanes_of(me) + ", which is there"};
    if (const uint32_t missing = meeting.mask & (~exist | warp.done)) {
        throw Fault{meeting.where() + ": the mask names lanes that don't exist or have returned: " + lanes_of(missing)};
    }
    for (Gathering& gathering : warp.gatherings) {
        if (gathering.meeting.is(meeting)) return gathering;
        if (gathering.meeting.mask & me) {
            throw Fault{meeting.where() + " while lanes " + lanes_of(gathering.arrived) + " wait for this one in " + gathering.meeting.where()};
        }
    }
    warp.gatherings.push_back({meeting, 0, {}});
    return warp.gatherings.back();
}

// `mine` is what this lane brings and takes away; work(all) sees every lane's, null for lanes outside the mask.
template <class Mine, class Work>
void meet(const Meeting& meeting, Mine& mine, Work work) {
    Thread& self = *cta().running;
    Warp& warp = cta().warp();
    Gathering& gathering = join(meeting);
    gathering.arrived |= self.bit();
    gathering.brought[self.lane] = &mine;
    if (gathering.arrived != meeting.mask) {
        cta().wait();
        return;
    }
    Mine* all[32];
    for (int lane = 0; lane < 32; ++lane) all[lane] = static_cast<Mine*>(gathering.brought[lane]);
    warp.gatherings.erase(warp.gatherings.begin() + (&gathering - warp.gatherings.data()));
    work(all);
    warp.ready |= meeting.mask;
}

// Every lane takes what its source lane brought.
template <class T>
T shuffle(const Meeting& meeting, T value, int source) {
    struct Slot {
        T value, taken;
        int source;
    } mine{value, value, source};
    meet(meeting, mine, [&](Slot** all) {
        ++counters.shuffles;
        for (int lane = 0; lane < 32; ++lane) {
            if (!all[lane]) continue;
            const Slot* from = all[all[lane]->source];
            if (!from) throw Fault{meeting.where() + text(": lane %d takes from lane %d, which the mask leaves out", lane, all[lane]->source)};
            all[lane]->taken = from->value;
        }
    });
    return mine.taken;
}

inline int running_lane() { return static_cast<int>(cta().running->lane); }

// The lane itself where `source` is outside its part of `width` lanes.
inline int within(int width, int source) {
    const int lane = running_lane();
    return source >= 0 && source / width == lane / width ? source : lane;
}

inline uint32_t ballot(const Meeting& meeting, bool yes) {
    struct Slot {
        bool yes;
        uint32_t all;
    } mine{yes, 0};
    meet(meeting, mine, [](Slot** all) {
        uint32_t found = 0;
        for (int lane = 0; lane < 32; ++lane) found |= all[lane] && all[lane]->yes ? 1u << lane : 0;
        for (int lane = 0; lane < 32; ++lane) {
            if (all[lane]) all[lane]->all = found;
        }
    });
    return mine.all;
}

}  // namespace simt

inline void __syncthreads(LMM_SIMT_HERE) { simt::cta().barrier({"__syncthreads", ~0u, true, file, line}, false); }
inline int __syncthreads_count(int yes, LMM_SIMT_HERE) {
    return simt::cta().barrier({"__syncthreads_count", ~0u, true, file, line}, yes != 0);
}
inline int __syncthreads_or(int yes, LMM_SIMT_HERE) {
    return simt::cta().barrier({"__syncthreads_or", ~0u, true, file, line}, yes != 0) != 0;
}
inline int __syncthreads_and(int yes, LMM_SIMT_HERE) {
    return simt::cta().barrier({"__syncthreads_and", ~0u, true, file, line}, yes == 0) == 0;
}

inline void __syncwarp(unsigned mask = ~0u, LMM_SIMT_HERE) { simt::ballot({"__syncwarp", mask, false, file, line}, false); }
inline unsigned __ballot_sync(unsigned mask, int yes, LMM_SIMT_HERE) {
    return simt::ballot({"__ballot_sync", mask, false, file, line}, yes != 0);
}
inline int __any_sync(unsigned mask, int yes, LMM_SIMT_HERE) {
    return simt::ballot({"__any_sync", mask, false, file, line}, yes != 0) != 0;
}
inline int __all_sync(unsigned mask, int yes, LMM_SIMT_HERE) {
    return simt::ballot({"__all_sync", mask, false, file, line}, yes == 0) == 0;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, LMM_SIMT_HERE) {
    const int lane = simt::running_lane() / width * width + (source & (width - 1));
    return simt::shuffle({"__shfl_sync", mask, false, file, line}, value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, LMM_SIMT_HERE) {
    return simt::shuffle({"__shfl_xor_sync", mask, false, file, line}, value, simt::within(width, simt::running_lane() ^ lanes));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, LMM_SIMT_HERE) {
    const int source = simt::running_lane() + static_cast<int>(lanes);
    return simt::shuffle({"__shfl_down_sync", mask, false, file, line}, value, simt::within(width, source));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, LMM_SIMT_HERE) {
    const int source = simt::running_lane() - static_cast<int>(lanes);
    return simt::shuffle({"__shfl_up_sync", mask, false, file, line}, value, simt::within(width, source));
}
