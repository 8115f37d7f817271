// A CPU emulator for the kernels in csrc/: g++ -x c++ -std=c++17 -O2 -DLMM_SIMT -I csrc compiles the same .cu files, and a launch runs them.
// It is for tests and never part of an installed extension. It proves logic, not speed.
//
// Every thread of a CTA is a fiber (fiber.h) on the calling OS thread. Fibers change at barriers and warp collectives only, CTAs at barriers and
// where one waits for, or releases, what another is to see (grid.h). What hardware leaves open is taken to its extremes, so that code which relies
// on luck is seen to be wrong (schedule.h):
//   - the order of warps, of lanes within a warp, and of CTAs; how many CTAs are under way, and which of them gets on,
//   - when a cp.async lands: as late as its wait allows, or at once,
//   - when ldmatrix reads: when the lane arrives, or when all have,
//   - what fresh memory holds: shared memory and the stack start as NaN in fp16, bf16, fp32 and fp64.
// LMM_SIMT_SEED (default 0) chooses among them; a right kernel gives the same bits for every seed.
//
// What is refused with a message (shared memory is fenced by inaccessible pages): accesses outside shared memory, misaligned 16-byte
// accesses, lanes of a warp that meet in different collectives, a collective or barrier that a thread never reaches, CTAs that all wait for each
// other, limits of an A100, and of a launch more threads than its bounds, shared memory that wasn't asked for, another device or stream than a test
// expects (runtime.h). What it can't see: races that no order of whole fibers shows, memory that other CTAs see late (a release that is none), and
// accesses outside global memory that land in mapped memory.
#pragma once

#include "simt/grid.h"
#include "simt/number.h"
#include "simt/runtime.h"
#include "simt/warp.h"
