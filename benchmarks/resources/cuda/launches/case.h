// What a file of launches needs: a case runs launchers on sizes of real models; pointers point nowhere, since nothing is read.
//
//   CASE("splice, rows of 4096") {
//       LmmSpliceForwardArgs args{};
//       args.table = anywhere;
//       ...
//       return lmm_splice_forward(&args, nullptr);
//   }
#pragma once

#include <cstdint>

namespace recorded {

// Runs before main(): notes a case, to be run by it.
struct Case {
    Case(const char* name, int (*run)());
    const char* name;
    int (*run)();
};

// Any pointer: aligned as an allocation is, not null, never followed.
struct Anywhere {
    template <class T>
    operator T*() const {
        return reinterpret_cast<T*>(uintptr_t{1} << 40);
    }
};
inline constexpr Anywhere anywhere{};

}  // namespace recorded

#define CASE_JOIN_(a, b) a##b
#define CASE_AT_(line, name)                                                            \
    static int CASE_JOIN_(run_, line)();                                                \
    static const recorded::Case CASE_JOIN_(case_, line)(name, &CASE_JOIN_(run_, line)); \
    static int CASE_JOIN_(run_, line)()
#define CASE(name) CASE_AT_(__LINE__, name)
