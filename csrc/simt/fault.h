// What the emulator refuses: a message, thrown inside the fiber that did it and caught where that fiber began.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>

namespace simt {

inline constexpr int A100_SHARED_BYTES = 163 * 1024;  // what one CTA may have; the hardware keeps 1 KiB of its 164 for itself

struct Fault {
    std::string message;
};

// The message of the last launch that failed.
inline std::string& last_fault() {
    static std::string message = "no fault";
    return message;
}

__attribute__((format(printf, 1, 2))) inline std::string text(const char* format, ...) {
    char buffer[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(buffer, sizeof buffer, format, arguments);
    va_end(arguments);
    return buffer;
}

// "0-15, 20" for a set of lanes.
inline std::string lanes_of(uint32_t mask) {
    std::string found;
    for (int first = 0; first < 32; ++first) {
        if (!(mask >> first & 1)) continue;
        int last = first;
        while (last < 31 && (mask >> (last + 1) & 1)) ++last;
        found += text(last > first ? "%s%d-%d" : "%s%d", found.empty() ? "" : ", ", first, last);
        first = last;
    }
    return found.empty() ? "none" : found;
}

}  // namespace simt
