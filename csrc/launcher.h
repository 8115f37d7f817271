// How a launcher becomes a Python function: the fields of its argument struct are the arguments, all of them required, pointers as integers (0 = null).
//
//   add_launcher(module, "splice_forward", lmm_splice_forward, FIELD(LmmSpliceForwardArgs, table), FIELD(LmmSpliceForwardArgs, rows), ...);
//
// is called as `_C.splice_forward(table=x.data_ptr(), rows=5, ..., stream=raw_stream(device))` and returns the launcher's code, 0 for success. Numbers
// that don't fit the field, and names that are missing or unknown, raise TypeError. Nothing is kept alive: the caller holds the tensors. Names cost
// 0.3 us each (25 of them 7.5 us, by position 0.9 us: an AMD EPYC, pybind11 3.1), so a call made for every token passes them by position.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include <pybind11/pybind11.h>

#include "common/cuda.cuh"

namespace lmm {

template <class Args, class Value>
struct Field {
    const char* name;
    Value Args::*place;
};

#define FIELD(Args, member) (::lmm::Field<Args, decltype(Args::member)>{#member, &Args::member})

template <class Value>
using PythonValue = std::conditional_t<std::is_pointer_v<Value>, std::uintptr_t, Value>;

template <class Value>
Value from_python(PythonValue<Value> value) {
    if constexpr (std::is_pointer_v<Value>) {
        return reinterpret_cast<Value>(value);
    } else {
        return value;
    }
}

// Whether Args{...} takes this many values; a struct takes as many as it has fields.
struct Anything {
    template <class Value>
    operator Value() const;
};

template <class Args, class Indices, class = void>
struct Takes : std::false_type {};

template <class Args, std::size_t... indices>
struct Takes<Args, std::index_sequence<indices...>, std::void_t<decltype(Args{(void(indices), Anything{})...})>> : std::true_type {};

template <class Args, class... Values>
void add_launcher(pybind11::module_& module, const char* name, int (*launch)(const Args*, cudaStream_t), Field<Args, Values>... fields) {
    static_assert(std::is_trivially_copyable_v<Args> && std::is_standard_layout_v<Args>, "arguments are plain data");
    static_assert(!Takes<Args, std::make_index_sequence<sizeof...(Values) + 1>>::value, "a field is missing");
    auto call = [launch, fields...](PythonValue<Values>... values, std::uintptr_t stream) {
        Args args{};
        ((args.*(fields.place) = from_python<Values>(values)), ...);
        return launch(&args, reinterpret_cast<cudaStream_t>(stream));
    };
    // A launch may wait for room in the device's queue; other threads of Python go on meanwhile.
    module.def(name, call, pybind11::arg(fields.name)..., pybind11::arg("stream"), pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace lmm
