// A second stack to run a function on, and the switch between stacks. A fiber is a thread of the kernel; the scheduler is the caller's own stack.
//
// x86-64 has a switch of its own (six registers, some nanoseconds; swapcontext makes two system calls each time); other machines use ucontext.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include <sys/mman.h>
#include <unistd.h>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace simt {

// Pages between two that can't be touched.
class FencedPages {
  public:
    explicit FencedPages(size_t at_least) {
        const size_t page = page_bytes();
        bytes_ = (at_least + page - 1) / page * page;
        void* place = mmap(nullptr, bytes_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (place == MAP_FAILED) std::abort();
        begin_ = static_cast<unsigned char*>(place) + page;
        if (mprotect(begin_, bytes_, PROT_READ | PROT_WRITE) != 0) std::abort();
    }
    ~FencedPages() { munmap(begin_ - page_bytes(), bytes_ + 2 * page_bytes()); }
    FencedPages(const FencedPages&) = delete;
    FencedPages& operator=(const FencedPages&) = delete;

    unsigned char* begin() const { return begin_; }
    unsigned char* end() const { return begin_ + bytes_; }
    bool fences(const void* address) const {
        const auto* at = static_cast<const unsigned char*>(address);
        return at >= begin_ - page_bytes() && at < end() + page_bytes();
    }
    static size_t page_bytes() {
        static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        return bytes;
    }

  private:
    unsigned char* begin_;
    size_t bytes_;
};

// A NaN in fp16, bf16, fp32 and fp64: what memory holds that nobody has written. `memory` and `bytes` are even.
inline constexpr uint16_t POISON = 0x7fff;

inline void poison(void* memory, size_t bytes) {
    std::fill_n(static_cast<uint16_t*>(memory), bytes / 2, POISON);
}

inline unsigned char poison_at(const unsigned char* address) {
    return reinterpret_cast<uintptr_t>(address) % 2 ? 0x7f : 0xff;
}

#ifdef __x86_64__

struct Context {
    void* stack_pointer = nullptr;
};

// Saves the caller's registers on its stack and goes on where `to` was left. A call, so only the callee-saved registers count.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*from*/, void* /*to*/) {
    asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

inline void switch_to(Context& from, Context& to) {
    switch_stacks(&from.stack_pointer, to.stack_pointer);
}

// As if `entry` had been called from address 0 and then left by a switch: six registers, its address, the return address it never uses.
inline void prepare(Context& context, const FencedPages& stack, void (*entry)()) {
    void** slot = reinterpret_cast<void**>(stack.end()) - 8;
    for (int i = 0; i < 6; ++i) slot[i] = nullptr;
    slot[6] = reinterpret_cast<void*>(entry);
    slot[7] = nullptr;
    context.stack_pointer = slot;
}

#else

struct Context {
    ucontext_t saved;
};

inline void switch_to(Context& from, Context& to) {
    swapcontext(&from.saved, &to.saved);
}

inline void prepare(Context& context, const FencedPages& stack, void (*entry)()) {
    getcontext(&context.saved);
    context.saved.uc_stack.ss_sp = stack.begin();
    context.saved.uc_stack.ss_size = static_cast<size_t>(stack.end() - stack.begin());
    context.saved.uc_link = nullptr;
    makecontext(&context.saved, entry, 0);
}

#endif

}  // namespace simt
