// Signals of the running fiber become faults with words: an access outside shared memory, outside a fenced tensor, past the stack, x / 0.
#pragma once

#include "simt/cta.h"

#include <pthread.h>
#include <signal.h>

namespace simt {

// For the time of a launch the process's handlers of these signals are ours, on a stack of their own; other threads' signals go where they went.
class CrashWatch {
  public:
    CrashWatch() {
        stack_t own{};
        own.ss_sp = stack_.begin();
        own.ss_size = static_cast<size_t>(stack_.end() - stack_.begin());
        sigaltstack(&own, &stack_before_);
        launching_thread() = pthread_self();
        struct sigaction action {};
        action.sa_sigaction = handle;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler is left by a switch, so it must not be blocked after it
        for (int i = 0; i < 3; ++i) sigaction(SIGNALS[i], &action, &before()[i]);
    }
    ~CrashWatch() {
        for (int i = 0; i < 3; ++i) sigaction(SIGNALS[i], &before()[i], nullptr);
        sigaltstack(&stack_before_, nullptr);
    }
    CrashWatch(const CrashWatch&) = delete;
    CrashWatch& operator=(const CrashWatch&) = delete;

  private:
    static constexpr int SIGNALS[3] = {SIGSEGV, SIGBUS, SIGFPE};

    static struct sigaction* before() {
        static struct sigaction handlers[3];
        return handlers;
    }
    static pthread_t& launching_thread() {
        static pthread_t thread;
        return thread;
    }

    static void handle(int number, siginfo_t* info, void*) {
        Cta* const running = current_cta();
        if (!running || !running->running || !pthread_equal(pthread_self(), launching_thread())) {  // not ours: as if we had never been there
            for (int i = 0; i < 3; ++i) sigaction(SIGNALS[i], &before()[i], nullptr);
            return;
        }
        running->refuse(describe(number, info->si_addr, *running->running));
        running->leave();
    }

    static std::string describe(int number, const void* address, const Thread& thread) {
        if (number == SIGFPE) return "integer division by zero";
        if (const SharedArray* array = shared_memory().fenced_at(address)) return "accessed " + array->where(address);
        if (thread.stack.fences(address)) return "stack overflow: the kernel's frame is larger than the emulator's 128 KiB";
        return text("accessed address %p, which is not mapped: outside global memory", address);
    }

    FencedPages stack_{64 * 1024};
    stack_t stack_before_{};
};

}  // namespace simt
