// Large buffers that are handed back and taken again in every pass.
//
// An evaluation writes hundreds of megabytes once and reads them once. Fresh memory from the system costs a page fault for
// every 4 KiB and is cleared first, which took longer than the arithmetic. So freed blocks wait here for the next pass. The
// pool never holds more than the most that was ever in use at one time.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

namespace nas_moreau {

class Pool {
 public:
  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: tensors may outlive static objects
    return *pool;
  }
  static int64_t rounded(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

  void* take(int64_t bytes) {
    bytes = rounded(bytes);
    std::lock_guard<std::mutex> guard(lock_);
    used_ += bytes;
    if (used_ > most_) most_ = used_;
    const auto found = free_.find(bytes);
    if (found != free_.end()) {
      void* block = found->second;
      free_.erase(found);
      waiting_ -= bytes;
      return block;
    }
    shrink();
    void* block = std::aligned_alloc(kPage, bytes);
    if (!block) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(block, bytes, MADV_HUGEPAGE);
#endif
    return block;
  }
  void give(void* block, int64_t bytes) {
    bytes = rounded(bytes);
    std::lock_guard<std::mutex> guard(lock_);
    used_ -= bytes, waiting_ += bytes;
    free_.emplace(bytes, block);
    shrink();
  }

 private:
  static constexpr int64_t kPage = int64_t(1) << 21;
  void shrink() {
    while (!free_.empty() && used_ + waiting_ > most_) {
      const auto smallest = free_.begin();
      std::free(smallest->second);
      waiting_ -= smallest->first;
      free_.erase(smallest);
    }
  }
  std::mutex lock_;
  std::multimap<int64_t, void*> free_;
  int64_t used_ = 0, waiting_ = 0, most_ = 0;
};

// A block of the pool for as long as this object lives; its contents are whatever was there before.
template <class T>
struct Borrowed {
  int64_t bytes;
  T* data;
  explicit Borrowed(int64_t size) : bytes(size * sizeof(T) + 64), data(static_cast<T*>(Pool::instance().take(bytes))) {}
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  ~Borrowed() { Pool::instance().give(data, bytes); }
};

}  // namespace nas_moreau
