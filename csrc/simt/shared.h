// Shared memory: every array ends at a page that can't be touched, and the bytes between its beginning and the page before are watched.
#pragma once

#include "simt/fault.h"
#include "simt/fiber.h"

#include <map>
#include <memory>
#include <vector>

namespace simt {

// One array of the CTA. Its end lies at the fence, except for the bytes that alignment costs.
class SharedArray {
  public:
    SharedArray(const char* name, size_t bytes, size_t alignment)
        : name_(name), bytes_(bytes), pages_(bytes + alignment), begin_(pages_.end() - (bytes + alignment - 1) / alignment * alignment) {}

    void* begin() const { return begin_; }
    void poison_all() const { poison(pages_.begin(), static_cast<size_t>(pages_.end() - pages_.begin())); }

    bool holds(const void* address, size_t bytes) const {
        const auto* at = static_cast<const unsigned char*>(address);
        return at >= begin_ && at + bytes <= begin_ + bytes_;
    }
    bool fences(const void* address) const { return pages_.fences(address); }

    std::string where(const void* address) const {
        const long offset = static_cast<long>(static_cast<const unsigned char*>(address) - begin_);
        return text("byte %ld of shared array '%s', which has %zu bytes", offset, name_, bytes_);
    }

    // Empty, or what was found in the bytes around the array that nobody may write.
    std::string trespass() const {
        for (const unsigned char* at = pages_.begin(); at < pages_.end(); ++at) {
            if (at == begin_) at += bytes_;
            if (at < pages_.end() && *at != poison_at(at)) return "wrote " + where(at);
        }
        return "";
    }

  private:
    const char* name_;
    size_t bytes_;
    FencedPages pages_;
    unsigned char* begin_;
};

// The arrays of the CTA that runs, poisoned when it first uses them.
class SharedMemory {
  public:
    void begin_cta(size_t dynamic_bytes) {
        in_use_.clear();
        ++cta_;
        std::unique_ptr<SharedArray>& found = dynamic_[dynamic_bytes];
        if (!found) found = std::make_unique<SharedArray>("dynamic", dynamic_bytes, 128);
        current_ = found.get();
        use(*current_);
    }

    void use(const SharedArray& array) {
        array.poison_all();
        in_use_.push_back(&array);
    }

    void* dynamic() const { return current_->begin(); }
    uint64_t cta() const { return cta_; }

    bool holds(const void* address, size_t bytes) const {
        for (const SharedArray* array : in_use_) {
            if (array->holds(address, bytes)) return true;
        }
        return false;
    }

    const SharedArray* fenced_at(const void* address) const {
        for (const SharedArray* array : in_use_) {
            if (array->fences(address)) return array;
        }
        return nullptr;
    }

    std::string trespass() const {
        for (const SharedArray* array : in_use_) {
            if (std::string found = array->trespass(); !found.empty()) return found;
        }
        return "";
    }

  private:
    std::map<size_t, std::unique_ptr<SharedArray>> dynamic_;
    SharedArray* current_ = nullptr;
    std::vector<const SharedArray*> in_use_;
    uint64_t cta_ = 0;
};

inline SharedMemory& shared_memory() {
    static SharedMemory memory;
    return memory;
}

// LMM_SHARED: one of these for each place in the program, made when a fiber first comes by.
class StaticShared {
  public:
    StaticShared(const char* name, size_t bytes) : array_(name, bytes, 16) {}

    void* here() {
        if (seen_ != shared_memory().cta()) {
            seen_ = shared_memory().cta();
            shared_memory().use(array_);
        }
        return array_.begin();
    }

  private:
    SharedArray array_;
    uint64_t seen_ = 0;
};

}  // namespace simt

#define LMM_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::simt::shared_memory().dynamic())
#define LMM_SHARED(type, name, count)                                                     \
    static ::simt::StaticShared lmm_shared_##name(#name, sizeof(type) * size_t{count}); \
    type* const name = static_cast<type*>(lmm_shared_##name.here())
