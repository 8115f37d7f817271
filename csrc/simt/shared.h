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

// The arrays of one CTA, poisoned when it first uses them.
class SharedMemory {
  public:
    void begin_cta(size_t dynamic_bytes) {
        in_use_.clear();
        std::unique_ptr<SharedArray>& found = dynamic_[dynamic_bytes];
        if (!found) found = std::make_unique<SharedArray>("dynamic", dynamic_bytes, 128);
        current_ = found.get();
        use(*current_);
    }

    void* dynamic() const { return current_->begin(); }

    // The array of a place in the program, which `place` stands for.
    void* fixed(const void* place, const char* name, size_t bytes) {
        std::unique_ptr<SharedArray>& found = fixed_[place];
        if (!found) found = std::make_unique<SharedArray>(name, bytes, 16);
        if (std::find(in_use_.begin(), in_use_.end(), found.get()) == in_use_.end()) use(*found);
        return found->begin();
    }

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
    void use(const SharedArray& array) {
        array.poison_all();
        in_use_.push_back(&array);
    }

    std::map<size_t, std::unique_ptr<SharedArray>> dynamic_;
    std::map<const void*, std::unique_ptr<SharedArray>> fixed_;
    SharedArray* current_ = nullptr;
    std::vector<const SharedArray*> in_use_;
};

// That of the CTA that runs.
inline SharedMemory*& current_shared_memory() {
    static SharedMemory* memory = nullptr;
    return memory;
}
inline SharedMemory& shared_memory() { return *current_shared_memory(); }

}  // namespace simt

#define LMM_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::simt::shared_memory().dynamic())
#define LMM_SHARED(type, name, count)  \
    static char lmm_shared_##name = 0; \
    type* const name = static_cast<type*>(::simt::shared_memory().fixed(&lmm_shared_##name, #name, sizeof(type) * size_t{count}))
