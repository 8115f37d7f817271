// What tests ask the emulated extension beside its launchers, by ctypes: how much work was done since the last reset.
#include "simt/simt.h"

extern "C" __attribute__((visibility("default"))) void lmm_simt_reset() {
    simt::counters = {};
}

// 0 or more; -1 for a name that isn't counted.
extern "C" __attribute__((visibility("default"))) int64_t lmm_simt_count(const char* name) {
    const simt::Counters& c = simt::counters;
    const struct {
        const char* name;
        uint64_t count;
    } known[] = {
        {"ctas", c.ctas},
        {"barriers", c.barriers},
        {"shuffles", c.shuffles},
        {"mma", c.mma},
        {"ldmatrix", c.ldmatrix},
        {"ldmatrix_conflicts", c.ldmatrix_conflicts},
        {"copies", c.copies},
        {"zero_fills", c.zero_fills},
        {"stream_loads", c.stream_loads},
        {"stream_stores", c.stream_stores},
    };
    for (const auto& each : known) {
        if (std::strcmp(each.name, name) == 0) return static_cast<int64_t>(each.count);
    }
    return -1;
}

// From now on a launch is refused that isn't on this stream of this device.
extern "C" __attribute__((visibility("default"))) void lmm_simt_expect(int device, uintptr_t stream) {
    simt::expected = {true, device, reinterpret_cast<cudaStream_t>(stream)};
}
extern "C" __attribute__((visibility("default"))) void lmm_simt_expect_nothing() {
    simt::expected = {};
}
extern "C" __attribute__((visibility("default"))) int lmm_simt_device() {
    return simt::current_device();
}

extern "C" __attribute__((visibility("default"))) const char* lmm_simt_last_fault() {
    return simt::last_fault().c_str();
}
