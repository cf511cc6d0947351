// What a cell computes, as plain numbers: `kernels/cell.py` writes them, this reads them.
#pragma once
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include "loops.h"

namespace nas_moreau {

enum Kind : int64_t {
  kSkip = 0,    // the state itself
  kSingle = 1,  // ReLU, depthwise, pointwise, norm
  kDouble = 2,  // the same twice
  kPair = 3,    // ReLU, two 1x1 convolutions of stride 2 side by side (the second shifted by one pixel), norm
  kPoint = 4,   // ReLU, 1x1 convolution, norm
  kDense = 5,   // ReLU, dense convolution, norm
  kMax = 6,     // 3x3 pooling, then a norm if `slot` >= 0
  kAverage = 7
};

struct Branch {
  int64_t kind, source, target;
  int64_t alpha;             // its place in the mixture
  int64_t kernel, dilation;  // of the (first) convolution; the second has dilation 1
  int64_t weight;            // its first tensor among the weights
  int64_t slot;              // its (first) norm among the statistics; -1: none
  int64_t mask;              // its row in `keep`; -1: never dropped
};

struct Plan {
  static constexpr int64_t kHeader = 6, kBranch = 9;
  int64_t inputs, nodes, channels, halves, slots, images;
  std::vector<int64_t> places;  // node -> its position in the output, or -1
  std::vector<Branch> branches;
  std::vector<int64_t> height, width;  // of every state
  int64_t pad = 1, positions = 0;

  Plan(at::ArrayRef<int64_t> numbers, int64_t n, int64_t h, int64_t w) {
    TORCH_CHECK(int64_t(numbers.size()) >= kHeader, "nas_moreau: the plan of a cell is too short");
    inputs = numbers[0], nodes = numbers[1], channels = numbers[2], halves = numbers[3], slots = numbers[4], images = n;
    const int64_t count = numbers[5];
    TORCH_CHECK(int64_t(numbers.size()) == kHeader + nodes + count * kBranch, "nas_moreau: the plan of a cell is torn");
    for (int64_t i = 0; i < nodes; ++i) {
      places.push_back(numbers[kHeader + i]);
      positions += places.back() >= 0;
    }
    const int64_t* at = numbers.data() + kHeader + nodes;
    for (int64_t b = 0; b < count; ++b, at += kBranch) {
      branches.push_back({at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], at[8]});
      if (at[0] == kSingle || at[0] == kDouble || at[0] == kDense) {
        TORCH_CHECK(at[0] == kDense || at[4] == 3 || at[4] == 5 || at[4] == 7, "nas_moreau: no such kernel size");
        pad = std::max(pad, at[5] * (at[4] / 2));
      }
    }
    for (int64_t i = 0; i < states(); ++i) {
      const bool half = halves && i >= inputs;
      height.push_back(half ? (h + 1) / 2 : h);
      width.push_back(half ? (w + 1) / 2 : w);
    }
  }

  int64_t states() const { return inputs + nodes; }
  int64_t stride(int64_t source) const { return halves && source < inputs ? 2 : 1; }
  int64_t area(int64_t state) const { return height[state] * width[state]; }
  int64_t last() const { return states() - 1; }
  int64_t out_channels() const { return positions * channels; }
};

// Images are shared out to threads in at most this many groups, each with sums of its own that are added in order
// afterwards: results do not depend on the number of threads.
constexpr int64_t kGroups = 16;

struct Groups {
  int64_t images, count;
  explicit Groups(int64_t n) : images(n), count(std::min(n, kGroups)) {}
  template <class F>
  void each(F&& f) const {  // f(group, first image, end)
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) f(g, g * images / count, (g + 1) * images / count);
    });
  }
};

// Sums that every group of images collects for itself; `total` adds them up.
template <class T>
struct GroupSums {
  int64_t groups, size;
  std::vector<T> values;
  GroupSums(const Groups& g, int64_t n) : groups(g.count), size(n), values(g.count * n, T(0)) {}
  T* of(int64_t group, int64_t offset) { return values.data() + group * size + offset; }
  void total(T* to, int64_t offset, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) to[i] = T(0);
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t i = 0; i < n; ++i) to[i] += values[g * size + offset + i];
  }
};

// Buffers that outlive the forward pass lie one after another in two tensors; this hands out places.
struct Allotment {
  int64_t used = 0;
  int64_t take(int64_t n) {
    const int64_t at = used;
    used += n;
    return at;
  }
};

}  // namespace nas_moreau
