// One cell of a supernet or of a derived network: its data, its normalisations, its forward pass.
//
// A pointwise convolution followed by BatchNorm is folded into one matrix, so that its output is never stored:
//     z = P d,   mean(z) = P mu,   var(z) = diag(P Sigma P'),   BN(z) = r (P d - P mu),   r = (var + eps)^-1/2
// with mu, Sigma the mean and covariance of d over the batch. All folded convolutions that end in one node are one matrix
// product with a long inner dimension. Covariances are summed around each image's own mean, with what rounding left of that
// mean taken out afterwards, so a large mean costs no digits.
#pragma once
#include <ATen/ATen.h>

#include <memory>

#include "plan.h"
#include "pooling.h"

namespace nas_moreau {

constexpr double kEpsilon = 1e-5;
// Beyond this ratio of what is added to what is left, the variance is taken from z itself.
template <class T>
constexpr double kCancellation = sizeof(T) == 4 ? 1e4 : 1e10;

// Something whose mean and variance (`full`: covariance) over the batch are needed.
template <class T>
struct Measured {
  T* data;  // images x area x width
  int64_t width, area;
  T *mean, *spread;  // width; width x width if full, else width
  bool full;
};

// A norm with what stands before it. `matrix` is absent for kinds that scale their stored data channel by channel.
template <class T>
struct Stage {
  T* d = nullptr;              // images x area x inner
  int64_t inner = 0, area = 0;  // inner: channels of d
  T *mu = nullptr, *sigma = nullptr;
  int64_t slot = -1;
  std::vector<T> pointwise;     // channels x inner
  std::vector<T> gain, offset;  // alpha * gamma and beta (or nothing) of every channel
  std::vector<T> matrix, bias;  // folded: inner x channels, channels (diagonal kinds: matrix has `channels` entries)
};

template <class T>
struct Cell {
  const Plan plan;
  const int64_t N, C;
  const Groups groups;
  std::vector<Image<const T>> inputs;
  const T* mixture;
  const std::vector<at::Tensor>& weights;
  const std::vector<at::Tensor>& affine;  // gamma, beta of every slot, or nothing
  const bool* keep;                       // rows x images, or null
  const bool measuring;                   // statistics come from this batch, not from outside
  T *out = nullptr, *saved = nullptr, *moments = nullptr, *stats = nullptr;

  std::vector<Stage<T>> inner, outer;                // one of each for every branch
  std::vector<std::vector<int64_t>> leaving, arriving;  // branches by state
  std::vector<T*> node_data;                         // nodes that are not part of the output
  std::vector<T*> pair_data, point_data;             // per state, shared by the edges that leave it
  std::vector<std::vector<Measured<T>>> first, second;  // per state: what the first and the second pass measure
  int64_t saved_size = 0, moments_size = 0;

  Cell(at::ArrayRef<int64_t> numbers, const std::vector<at::Tensor>& states, const at::Tensor& mix,
       const std::vector<at::Tensor>& w, const std::vector<at::Tensor>& a, const c10::optional<at::Tensor>& mask,
       bool measure)
      : plan(numbers, states[0].size(0), states[0].size(2), states[0].size(3)),
        N(plan.images), C(plan.channels), groups(N), mixture(mix.const_data_ptr<T>()), weights(w), affine(a),
        keep(mask ? mask->const_data_ptr<bool>() : nullptr), measuring(measure) {
    for (const auto& s : states)
      inputs.push_back({s.const_data_ptr<T>(), plan.width[0] * C, C});
    T* const anywhere = reinterpret_cast<T*>(uintptr_t(64));
    list_branches();
    attach(anywhere, anywhere, nullptr, nullptr);  // for the sizes
  }

  T* const_weight(int64_t index) const { return const_cast<T*>(weights[index].const_data_ptr<T>()); }
  bool kept(const Branch& b, int64_t image) const { return !keep || b.mask < 0 || keep[b.mask * N + image]; }
  int64_t taps(const Branch& b) const { return b.kernel * b.kernel; }

  Image<const T> state(int64_t i, int64_t image) const {
    if (i < plan.inputs) return {inputs[i].data + image * plan.area(i) * C, inputs[i].pitch, C};
    return node(i, image);
  }
  Image<T> node(int64_t i, int64_t image) const {
    const int64_t place = plan.places[i - plan.inputs], wide = place < 0 ? C : plan.out_channels();
    T* start = place < 0 ? node_data[i] : out + place * C;
    return {start + image * plan.area(i) * wide, plan.width[i] * wide, wide};
  }
  // The pixels of one image of stored data, as one long row.
  static Image<T> flat(T* data, int64_t image, int64_t area, int64_t width) {
    return {data + image * area * width, area * width, width};
  }

  void list_branches() {
    const int64_t states = plan.states();
    leaving.resize(states), arriving.resize(states), first.resize(states), second.resize(states);
    inner.resize(plan.branches.size()), outer.resize(plan.branches.size());
    for (size_t b = 0; b < plan.branches.size(); ++b) {
      leaving[plan.branches[b].source].push_back(b);
      arriving[plan.branches[b].target].push_back(b);
    }
  }

  // Gives everything that is stored its place in the buffers.
  void attach(T* saved_at, T* moments_at, T* stats_at, T* out_at) {
    saved = saved_at, moments = moments_at, stats = stats_at, out = out_at;
    Allotment big, small;
    const int64_t area = plan.area(plan.last());
    node_data.assign(plan.states(), nullptr);
    pair_data.assign(plan.states(), nullptr), point_data.assign(plan.states(), nullptr);
    const auto store = [&](int64_t width) { return saved + big.take(N * area * width); };
    for (int64_t i = plan.inputs; i < plan.states(); ++i)
      if (plan.places[i - plan.inputs] < 0) node_data[i] = store(C);
    for (int64_t i = 0; i < plan.states(); ++i) {
      first[i].clear(), second[i].clear();
      const auto measured = [&](std::vector<Measured<T>>& list, Stage<T>& stage, T* data, int64_t width, bool full) {
        stage.d = data, stage.inner = width, stage.area = area;
        for (const auto& m : list)
          if (m.data == data) {  // shared by several edges
            stage.mu = m.mean, stage.sigma = m.spread;
            return;
          }
        stage.mu = moments + small.take(width);
        stage.sigma = moments + small.take(full ? width * width : width);
        list.push_back({data, width, area, stage.mu, stage.sigma, full});
      };
      T *largest = nullptr, *average = nullptr;
      for (int64_t b : leaving[i]) {
        const Branch& branch = plan.branches[b];
        Stage<T>&in = inner[b], &end = outer[b];
        end.slot = branch.kind == kDouble ? branch.slot + 1 : branch.slot;
        switch (branch.kind) {
          case kSingle: measured(first[i], end, store(C), C, true); break;
          case kDouble:
            in.slot = branch.slot;
            measured(first[i], in, store(C), C, true);
            measured(second[i], end, store(C), C, true);
            break;
          case kPair:
            if (!pair_data[i]) pair_data[i] = store(2 * C);
            measured(first[i], end, pair_data[i], 2 * C, true);
            break;
          case kPoint:
            if (!point_data[i]) point_data[i] = store(C);
            measured(first[i], end, point_data[i], C, true);
            break;
          case kDense: measured(first[i], end, store(C), C, false); break;
          case kMax:
          case kAverage: {
            T*& shared = branch.kind == kMax ? largest : average;
            if (!shared) shared = store(C);
            measured(first[i], end, shared, C, false);
            break;
          }
          default: break;
        }
      }
    }
    saved_size = big.used, moments_size = small.used;
  }

  // ------------------------------------------------------------ depthwise and dense convolutions as tap lists

  // Where the taps of a convolution lie in an image padded by plan.pad, seen from output pixel (0, 0).
  std::vector<int64_t> tap_offsets(int64_t kernel, int64_t dilation, int64_t pitch, int64_t step) const {
    std::vector<int64_t> offsets;
    const int64_t start = plan.pad - dilation * (kernel / 2);
    for (int64_t y = 0; y < kernel; ++y)
      for (int64_t x = 0; x < kernel; ++x)
        offsets.push_back((start + y * dilation) * pitch + (start + x * dilation) * step);
    return offsets;
  }
  // (C, 1, k, k) -> (k * k, C)
  std::vector<T> taps_first(int64_t weight, int64_t count) const {
    std::vector<T> turned(count * C);
    const T* w = const_weight(weight);
    for (int64_t c = 0; c < C; ++c)
      for (int64_t t = 0; t < count; ++t) turned[t * C + c] = w[c * count + t];
    return turned;
  }
  // (C, C, k, k) -> (k * k, in, out), or with `back` (k * k, out, in)
  std::vector<T> dense_taps(int64_t weight, int64_t count, bool back) const {
    std::vector<T> turned(count * C * C);
    const T* w = const_weight(weight);
    for (int64_t o = 0; o < C; ++o)
      for (int64_t i = 0; i < C; ++i)
        for (int64_t t = 0; t < count; ++t)
          turned[t * C * C + (back ? o * C + i : i * C + o)] = w[(o * C + i) * count + t];
    return turned;
  }

  int64_t padded_pitch(int64_t width) const { return (width + 2 * plan.pad) * C; }
  int64_t padded_size(int64_t height, int64_t width) const { return (height + 2 * plan.pad) * padded_pitch(width); }
  Image<T> inside(T* padded, int64_t width) const {
    return Image<T>{padded, padded_pitch(width), C}.at(plan.pad, plan.pad);
  }

  // ------------------------------------------------------------ statistics

  // Adds one image to the sums. means: its mean of every channel, and what that mean lacks for rounding.
  void measure(const std::vector<Measured<T>>& list, int64_t group, int64_t image, GroupSums<T>& sums,
               std::vector<std::vector<T>>& means) const {
    int64_t offset = 0;
    for (size_t m = 0; m < list.size(); ++m) {
      const auto& it = list[m];
      const int64_t W = it.width;
      const Image<const T> d = flat(it.data, image, it.area, W);
      T *mean = means[m].data() + image * 2 * W, *rest = mean + W, *sum = sums.of(group, offset);
      pixel_sum<T>(d, 1, it.area, W, mean);
      for (int64_t c = 0; c < W; ++c) mean[c] /= T(it.area);
      pixel_sum<T>(d, 1, it.area, W, rest, mean);
      for (int64_t c = 0; c < W; ++c) rest[c] /= T(it.area);
      if (it.full) {  // sum of (d_i - mean_i - rest_i)(d_j - mean_j - rest_j)
        outer_sum<T>(d, W, d, W, mean, 1, it.area, sum, true);
        for (int64_t i = 0; i < W; ++i)
          for (int64_t j = i; j < W; ++j) sum[i * W + j] -= T(it.area) * (mean[i] + rest[i]) * rest[j];
        offset += W * W;
      } else {
        product_sum<T>(d, mean, d, mean, 1, it.area, W, sum);
        for (int64_t i = 0; i < W; ++i) sum[i] -= T(it.area) * rest[i] * rest[i];
        offset += W;
      }
    }
  }

  static int64_t sums_size(const std::vector<Measured<T>>& list) {
    int64_t size = 0;
    for (const auto& m : list) size += m.full ? m.width * m.width : m.width;
    return size;
  }
  std::vector<std::vector<T>> image_means(const std::vector<Measured<T>>& list) const {
    std::vector<std::vector<T>> means;
    for (const auto& m : list) means.emplace_back(N * 2 * m.width, T(0));
    return means;
  }

  void finish_measures(const std::vector<Measured<T>>& list, const GroupSums<T>& sums,
                       const std::vector<std::vector<T>>& means) const {
    std::vector<int64_t> offsets;
    int64_t offset = 0;
    for (const auto& m : list) offsets.push_back(offset), offset += m.full ? m.width * m.width : m.width;
    at::parallel_for(0, list.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) {
        const auto& it = list[m];
        const int64_t W = it.width, size = it.full ? W * W : W;
        for (int64_t c = 0; c < W; ++c) {
          double mean = 0;
          for (int64_t n = 0; n < N; ++n) mean += double(means[m][n * 2 * W + c]) + means[m][n * 2 * W + W + c];
          it.mean[c] = T(mean / N);
        }
        sums.total(it.spread, offsets[m], size);
        // between images: area * sum_n (mean_n - mean)(mean_n - mean)'
        std::vector<T> centred(N * W), between(size, T(0));
        for (int64_t n = 0; n < N; ++n)
          for (int64_t c = 0; c < W; ++c)
            centred[n * W + c] = (means[m][n * 2 * W + c] - it.mean[c]) + means[m][n * 2 * W + W + c];
        const Image<const T> rows{centred.data(), N * W, W};
        if (it.full) outer_sum<T>(rows, W, rows, W, nullptr, 1, N, between.data(), true);
        else product_sum<T>(rows, nullptr, rows, nullptr, 1, N, W, between.data());
        const T count = T(N * it.area);
        for (int64_t k = 0; k < size; ++k) it.spread[k] = (it.spread[k] + T(it.area) * between[k]) / count;
        if (it.full)
          for (int64_t r = 0; r < W; ++r)
            for (int64_t c = 0; c < r; ++c) it.spread[r * W + c] = it.spread[c * W + r];
      }
    });
  }

  // var(z) of one channel from z itself: for weights that nearly cancel a strongly correlated d.
  double direct_variance(const Stage<T>& stage, int64_t c) const {
    double sum = 0, squares = 0;
    const T* p = stage.pointwise.data() + c * stage.inner;
    for (int64_t i = 0; i < N * stage.area; ++i) {
      double z = 0;
      for (int64_t k = 0; k < stage.inner; ++k) z += double(p[k]) * (double(stage.d[i * stage.inner + k]) - stage.mu[k]);
      sum += z, squares += z * z;
    }
    const double count = double(N) * stage.area;
    return squares / count - (sum / count) * (sum / count);
  }

  void load_pointwise(const Branch& b, bool second_stage, Stage<T>& stage) const {
    if (b.kind == kPair) {  // [even | odd] as one matrix on the two samplings side by side
      const int64_t half = C / 2;
      stage.pointwise.assign(C * 2 * C, T(0));
      const T *even = const_weight(b.weight), *odd = const_weight(b.weight + 1);
      for (int64_t o = 0; o < C; ++o)
        for (int64_t i = 0; i < C; ++i)
          stage.pointwise[o * 2 * C + (o < half ? 0 : C) + i] = o < half ? even[o * C + i] : odd[(o - half) * C + i];
      return;
    }
    const int64_t index = b.kind == kPoint ? b.weight : b.weight + (second_stage ? 3 : 1);
    const T* w = const_weight(index);
    stage.pointwise.assign(w, w + C * C);
  }

  // Mean and variance of the stage's z, then the folded matrix and bias.
  void fold(Stage<T>& stage, bool diagonal) const {
    T *mean = stats + stage.slot * 2 * C, *variance = mean + C;
    const int64_t K = stage.inner;
    if (measuring && diagonal) {
      std::copy(stage.mu, stage.mu + C, mean);
      std::copy(stage.sigma, stage.sigma + C, variance);
    } else if (measuring) {
      std::vector<T> product(C * K);  // P Sigma
      const Source<T> source{{stage.pointwise.data(), C * K, K}, K, stage.sigma};
      matrix_sum<T>(&source, 1, 1, C, K, nullptr, false, false, {product.data(), C * K, K});
      for (int64_t c = 0; c < C; ++c) {
        double m = 0, v = 0, bound = 0;
        for (int64_t k = 0; k < K; ++k) {
          const double p = stage.pointwise[c * K + k];
          m += p * stage.mu[k];
          v += p * product[c * K + k];
          bound += std::abs(p) * std::sqrt(std::max(double(stage.sigma[k * K + k]), 0.0));
        }
        if (v * kCancellation<T> < bound * bound) v = direct_variance(stage, c);
        mean[c] = T(m), variance[c] = T(std::max(v, 0.0));
      }
    }
    stage.bias.assign(C, T(0));
    stage.matrix.assign(diagonal ? C : C * K, T(0));
    for (int64_t c = 0; c < C; ++c) {
      const T scale = stage.gain[c] * T(1 / std::sqrt(double(variance[c]) + kEpsilon));
      stage.bias[c] = (stage.offset.empty() ? T(0) : stage.offset[c]) - scale * mean[c];
      if (diagonal) stage.matrix[c] = scale;
      else
        for (int64_t k = 0; k < K; ++k) stage.matrix[k * C + c] = scale * stage.pointwise[c * K + k];
    }
  }

  static bool diagonal(const Branch& b) { return b.kind == kDense || b.kind == kMax || b.kind == kAverage; }

  // gain = alpha * gamma, offset = alpha * beta
  void set_gain(Stage<T>& stage, T alpha) const {
    stage.gain.assign(C, alpha), stage.offset.clear();
    if (affine.empty() || stage.slot < 0) return;
    const T *gamma = affine[2 * stage.slot].template const_data_ptr<T>(),
            *beta = affine[2 * stage.slot + 1].template const_data_ptr<T>();
    stage.offset.assign(C, T(0));
    for (int64_t c = 0; c < C; ++c) stage.gain[c] = alpha * gamma[c], stage.offset[c] = alpha * beta[c];
  }

  void prepare_inner(int64_t b) {
    load_pointwise(plan.branches[b], false, inner[b]);
    set_gain(inner[b], T(1));
    fold(inner[b], false);
  }
  void prepare_outer(int64_t b) {
    const Branch& branch = plan.branches[b];
    set_gain(outer[b], mixture[branch.alpha]);
    if (branch.kind == kSkip) return;
    if (branch.slot < 0) {  // pooling without a norm
      outer[b].matrix.assign(C, mixture[branch.alpha]), outer[b].bias.assign(C, T(0));
      return;
    }
    if (!diagonal(branch)) load_pointwise(branch, branch.kind == kDouble, outer[b]);
    fold(outer[b], diagonal(branch));
  }
  template <class F>
  void branches_in_parallel(const std::vector<int64_t>& list, F&& f) const {
    at::parallel_for(0, list.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(list[i]);
    });
  }

  // ------------------------------------------------------------ forward

  void forward() {
    for (int64_t i = 0; i < plan.states(); ++i) {
      if (i >= plan.inputs) sum_node(i);
      if (!leaving[i].empty()) leave_state(i);
    }
  }

  // Everything the edges that leave state i do before their contributions are added up in the nodes.
  void leave_state(int64_t i) {
    const int64_t H = plan.height[i], W = plan.width[i], h = plan.height[plan.last()], w = plan.width[plan.last()];
    const int64_t stride = plan.stride(i), pitch = padded_pitch(W), area = h * w;
    std::vector<std::vector<T>> packed(plan.branches.size()), packed_second(plan.branches.size());
    bool rectified = false, doubled = false;
    for (int64_t b : leaving[i]) {
      const Branch& branch = plan.branches[b];
      if (branch.kind == kSingle || branch.kind == kDouble) packed[b] = taps_first(branch.weight, taps(branch));
      if (branch.kind == kDouble) packed_second[b] = taps_first(branch.weight + 2, taps(branch)), doubled = true;
      if (branch.kind == kDense) packed[b] = dense_taps(branch.weight, taps(branch), false);
      rectified |= branch.kind >= kSingle && branch.kind <= kDense;
    }
    {
      GroupSums<T> sums(groups, sums_size(first[i]));
      auto means = image_means(first[i]);
      groups.each([&](int64_t group, int64_t begin, int64_t end) {
        Scratch<T> x(rectified ? padded_size(H, W) : 1);
        for (int64_t n = begin; n < end; ++n) {
          if (rectified) rectify<T>(state(i, n), inside(x, W), H, W, C);
          T *pair = pair_data[i], *point = point_data[i];
          const T *largest = nullptr, *average = nullptr;
          for (int64_t b : leaving[i]) {
            const Branch& branch = plan.branches[b];
            T* d = branch.kind == kDouble ? inner[b].d : outer[b].d;
            if (branch.kind == kSingle || branch.kind == kDouble) {
              const auto offsets = tap_offsets(branch.kernel, branch.dilation, pitch, C);
              stencil<T>({x, stride * pitch, stride * C}, {d + n * area * C, w * C, C}, h, w, C, packed[b].data(),
                         offsets.data(), taps(branch), false);
            } else if (branch.kind == kDense) {
              const auto offsets = tap_offsets(branch.kernel, branch.dilation, pitch, C);
              std::vector<Source<T>> sources;
              for (int64_t t = 0; t < taps(branch); ++t)
                sources.push_back({{x + offsets[t], stride * pitch, stride * C}, C, packed[b].data() + t * C * C});
              matrix_sum<T>(sources.data(), sources.size(), h, w, C, nullptr, false, false, {d + n * area * C, w * C, C});
            } else if ((branch.kind == kPair && pair) || (branch.kind == kPoint && point)) {
              T*& shared = branch.kind == kPair ? pair : point;
              const int64_t width = branch.kind == kPair ? 2 * C : C;
              for (int64_t y = 0; y < h; ++y)
                for (int64_t column = 0; column < w; ++column) {
                  T* to = shared + ((n * h + y) * w + column) * width;
                  const Image<T> at = inside(x, W);
                  std::copy_n(at.at(stride * y, stride * column).data, C, to);
                  if (width > C) std::copy_n(at.at(stride * y + 1, stride * column + 1).data, C, to + C);
                }
              shared = nullptr;  // once for all edges
            } else if ((branch.kind == kMax && d != largest) || (branch.kind == kAverage && d != average)) {
              (branch.kind == kMax ? largest : average) = d;
              pool_forward<T>(branch.kind == kMax, state(i, n), H, W, stride, C, {d + n * area * C, w * C, C}, h, w);
            }
          }
          if (measuring) measure(first[i], group, n, sums, means);
        }
      });
      if (measuring) finish_measures(first[i], sums, means);
    }
    branches_in_parallel(leaving[i], [&](int64_t b) {
      if (plan.branches[b].kind == kDouble) prepare_inner(b);
      else prepare_outer(b);
    });
    if (!doubled) return;
    GroupSums<T> sums(groups, sums_size(second[i]));
    auto means = image_means(second[i]);
    groups.each([&](int64_t group, int64_t begin, int64_t end) {
      Scratch<T> z(padded_size(h, w));
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t b : leaving[i]) {
          const Branch& branch = plan.branches[b];
          if (branch.kind != kDouble) continue;
          half_way(inner[b], n, inside(z, w), h, w);
          const auto offsets = tap_offsets(branch.kernel, 1, padded_pitch(w), C);
          stencil<T>({z, padded_pitch(w), C}, {outer[b].d + n * area * C, w * C, C}, h, w, C, packed_second[b].data(),
                     offsets.data(), taps(branch), false);
        }
        if (measuring) measure(second[i], group, n, sums, means);
      }
    });
    if (measuring) finish_measures(second[i], sums, means);
    branches_in_parallel(leaving[i], [&](int64_t b) {
      if (plan.branches[b].kind == kDouble) prepare_outer(b);
    });
  }

  // ReLU(BN(P d)) of one image: what stands between the halves of a separable convolution.
  void half_way(const Stage<T>& stage, int64_t n, Image<T> to, int64_t h, int64_t w) const {
    const Source<T> source{{stage.d + n * stage.area * C, w * C, C}, C, stage.matrix.data()};
    matrix_sum<T>(&source, 1, h, w, C, stage.bias.data(), false, true, to);
  }

  void sum_node(int64_t j) {
    const int64_t area = plan.area(j);
    groups.each([&](int64_t, int64_t begin, int64_t end) {
      std::vector<Source<T>> products;
      std::vector<Scaled<T>> scaled;
      std::vector<T> constant(C);
      for (int64_t n = begin; n < end; ++n) {
        products.clear(), scaled.clear(), constant.assign(C, T(0));
        for (int64_t b : arriving[j]) {
          const Branch& branch = plan.branches[b];
          const Stage<T>& stage = outer[b];
          if (!kept(branch, n)) continue;
          if (branch.kind == kSkip) {
            scaled.push_back({as_row(state(branch.source, n)), gain_of_skip(b)});
            continue;
          }
          for (int64_t c = 0; c < C; ++c) constant[c] += stage.bias[c];
          const Image<const T> d = flat(stage.d, n, area, stage.inner);
          if (diagonal(branch)) scaled.push_back({d, stage.matrix.data()});
          else products.push_back({d, stage.inner, stage.matrix.data()});
        }
        const Image<T> to{node(j, n).data, 0, node(j, n).step};
        if (!scaled.empty() || products.empty()) combine<T>(scaled, constant.data(), 1, area, C, false, to);
        if (!products.empty())
          matrix_sum<T>(products.data(), products.size(), 1, area, C, scaled.empty() ? constant.data() : nullptr,
                        !scaled.empty(), false, to);
      }
    });
  }
  static Image<const T> as_row(Image<const T> image) { return {image.data, 0, image.step}; }
  const T* gain_of_skip(int64_t b) const { return outer[b].gain.data(); }
};

}  // namespace nas_moreau
