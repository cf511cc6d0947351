// The backward pass of a cell. For y = a r (P d - mean) + offset with batch statistics, A = sum of dy (d - mu)',
// s = sum of dy, u = diag(P A'), n the number of pixels in the batch:
//     dP = diag(a r) A - diag(a u r^3) P Sigma      da = r u      d(offset) = s
//     dd = P' diag(a r) dy + M (d - mu) - P' diag(a r) s / n,     M = -P' diag(a u r^3 / n) P
// so one product with two sources, dy and d, gives dd; z is never seen.
#pragma once
#include "cell.h"
#include "memory.h"

namespace nas_moreau {

// What the fold of one stage hands to the gradient of its input.
template <class T>
struct StageGradient {
  std::vector<T> from_dy;   // channels x inner (diagonal kinds: channels)
  std::vector<T> from_d;    // inner x inner   (diagonal kinds: channels)
  std::vector<T> constant;  // inner
};

template <class T>
struct CellGradient : Cell<T> {
  using Base = Cell<T>;
  using Base::C, Base::N, Base::plan, Base::groups, Base::leaving, Base::inner, Base::outer, Base::affine;
  using Base::diagonal, Base::flat, Base::kept, Base::taps, Base::as_row, Base::inside, Base::padded_pitch,
      Base::padded_size, Base::state;

  const bool weights_wanted;
  std::vector<at::Tensor> weight_grads, affine_grads;  // as the weights, as gamma and beta
  std::vector<T> mixture_grads;
  std::vector<T*> grads;                     // per state: images x area x channels
  std::vector<std::vector<T>> image_sums;    // per node: images x channels, the sums of grads over each image
  std::vector<StageGradient<T>> inner_grads, outer_grads;

  CellGradient(at::ArrayRef<int64_t> numbers, const std::vector<at::Tensor>& states, const at::Tensor& mix,
               const std::vector<at::Tensor>& w, const std::vector<at::Tensor>& a,
               const c10::optional<at::Tensor>& mask, bool wanted)
      : Base(numbers, states, mix, w, a, mask, false), weights_wanted(wanted), mixture_grads(mix.numel(), T(0)),
        image_sums(plan.states()), inner_grads(plan.branches.size()), outer_grads(plan.branches.size()) {
    if (wanted)
      for (const auto& t : w) weight_grads.push_back(at::zeros(t.sizes(), t.options().memory_format(at::MemoryFormat::Contiguous)));
    if (wanted)
      for (const auto& t : a) affine_grads.push_back(at::zeros(t.sizes(), t.options()));
  }

  T* grad_of_weight(int64_t index) { return weight_grads[index].template data_ptr<T>(); }

  // ------------------------------------------------------------ folds

  // sum of dy over the images a branch was kept on
  std::vector<T> sum_of(const Branch& b) const {
    std::vector<T> sum(C, T(0));
    for (int64_t n = 0; n < N; ++n)
      if (kept(b, n))
        for (int64_t c = 0; c < C; ++c) sum[c] += image_sums[b.target][n * C + c];
    return sum;
  }

  void affine_gradient(const Stage<T>& stage, T alpha, const std::vector<T>& du, const std::vector<T>& sum) {
    if (affine.empty() || !weights_wanted) return;
    T *gamma = affine_grads[2 * stage.slot].template data_ptr<T>(),
      *beta = affine_grads[2 * stage.slot + 1].template data_ptr<T>();
    for (int64_t c = 0; c < C; ++c) gamma[c] = alpha * du[c], beta[c] = alpha * sum[c];
  }

  // d(loss)/d(alpha) from r u and s
  void alpha_gradient(const Stage<T>& stage, int64_t place, const std::vector<T>& du, const std::vector<T>& sum) {
    double total = 0;
    const bool plain = affine.empty() || stage.slot < 0;
    const T* gamma = plain ? nullptr : affine[2 * stage.slot].template const_data_ptr<T>();
    const T* beta = plain ? nullptr : affine[2 * stage.slot + 1].template const_data_ptr<T>();
    for (int64_t c = 0; c < C; ++c) total += plain ? du[c] : gamma[c] * du[c] + beta[c] * sum[c];
    mixture_grads[place] = T(total);
  }

  // A (channels x inner) and s -> the gradients of the stage's own parameters, and what its input's gradient needs.
  // Returns r u.
  std::vector<T> unfold(const Stage<T>& stage, const T* A, const std::vector<T>& sum, T* dP, StageGradient<T>& to) const {
    const int64_t K = stage.inner;
    const T* variance = this->stats + stage.slot * 2 * C + C;
    const T count = T(N * stage.area), *P = stage.pointwise.data();
    std::vector<T> du(C), falls(C), product(dP ? C * K : 0), weighted(C * K);
    to.from_dy.assign(C * K, T(0)), to.from_d.assign(K * K, T(0)), to.constant.assign(K, T(0));
    if (dP) {
      const Source<T> source{{P, C * K, K}, K, stage.sigma};
      matrix_sum<T>(&source, 1, 1, C, K, nullptr, false, false, {product.data(), C * K, K});
    }
    for (int64_t c = 0; c < C; ++c) {
      const double r = 1 / std::sqrt(double(variance[c]) + kEpsilon);
      double u = 0;
      for (int64_t k = 0; k < K; ++k) u += double(P[c * K + k]) * A[c * K + k];
      du[c] = T(r * u);
      falls[c] = T(-stage.gain[c] * u * r * r * r);
      const T scale = T(stage.gain[c] * r);
      for (int64_t k = 0; k < K; ++k) {
        to.from_dy[c * K + k] = scale * P[c * K + k];
        weighted[c * K + k] = falls[c] / count * P[c * K + k];
        to.constant[k] -= to.from_dy[c * K + k] * sum[c] / count;
        if (dP) dP[c * K + k] = scale * A[c * K + k] + falls[c] * product[c * K + k];
      }
    }
    outer_sum<T>({P, C * K, K}, K, {weighted.data(), C * K, K}, K, nullptr, 1, C, to.from_d.data());
    for (int64_t i = 0; i < K; ++i)
      for (int64_t k = 0; k < K; ++k) to.constant[k] -= stage.mu[i] * to.from_d[i * K + k];
    return du;
  }

  // The same for kinds that are scaled channel by channel: A holds `channels` sums of dy (d - mean).
  std::vector<T> unfold_diagonal(const Stage<T>& stage, const T* A, const std::vector<T>& sum, StageGradient<T>& to) const {
    to.from_dy.assign(C, T(0)), to.from_d.assign(C, T(0)), to.constant.assign(C, T(0));
    if (stage.slot < 0) {
      to.from_dy = stage.gain;
      return {A, A + C};
    }
    const T *mean = this->stats + stage.slot * 2 * C, *variance = mean + C, count = T(N * stage.area);
    std::vector<T> du(C);
    for (int64_t c = 0; c < C; ++c) {
      const double r = 1 / std::sqrt(double(variance[c]) + kEpsilon);
      du[c] = T(r * A[c]);
      to.from_dy[c] = T(stage.gain[c] * r);
      to.from_d[c] = T(-stage.gain[c] * A[c] * r * r * r / count);
      to.constant[c] = -to.from_d[c] * mean[c] - to.from_dy[c] * sum[c] / count;
    }
    return du;
  }

  void unfold_outer(int64_t b, const T* A) {
    const Branch& branch = plan.branches[b];
    const Stage<T>& stage = outer[b];
    std::vector<T> sum = branch.kind == kSkip ? std::vector<T>(C, T(0)) : sum_of(branch), du, dP;
    if (branch.kind == kSkip) du.assign(A, A + C);
    else if (diagonal(branch)) du = unfold_diagonal(stage, A, sum, outer_grads[b]);
    else {
      if (weights_wanted) dP.resize(C * stage.inner);
      du = unfold(stage, A, sum, weights_wanted ? dP.data() : nullptr, outer_grads[b]);
    }
    alpha_gradient(stage, branch.alpha, du, sum);
    if (stage.slot >= 0) affine_gradient(stage, this->mixture[branch.alpha], du, sum);
    if (dP.empty()) return;
    if (branch.kind == kPair) {
      const int64_t half = C / 2;
      T *even = grad_of_weight(branch.weight), *odd = grad_of_weight(branch.weight + 1);
      for (int64_t o = 0; o < C; ++o)
        for (int64_t i = 0; i < C; ++i)
          (o < half ? even[o * C + i] : odd[(o - half) * C + i]) = dP[o * 2 * C + (o < half ? 0 : C) + i];
    } else {
      const int64_t index = branch.kind == kPoint ? branch.weight : branch.weight + (branch.kind == kDouble ? 3 : 1);
      std::copy(dP.begin(), dP.end(), grad_of_weight(index));
    }
  }

  // ------------------------------------------------------------ the gradient of a convolution's input

  // Taps of one of the stride * stride phases of input pixels that share their taps.
  struct Phase {
    int64_t y, x;
    std::vector<int64_t> offsets;
    std::vector<T> weights;  // one block of `block` numbers for each tap
  };
  std::vector<Phase> phases(const Branch& b, int64_t dilation, int64_t stride, int64_t pitch, const std::vector<T>& packed,
                            int64_t block) const {
    std::vector<Phase> all;
    const int64_t reach = dilation * (b.kernel / 2);
    for (int64_t py = 0; py < stride; ++py)
      for (int64_t px = 0; px < stride; ++px) {
        Phase phase{py, px, {}, {}};
        for (int64_t ky = 0; ky < b.kernel; ++ky)
          for (int64_t kx = 0; kx < b.kernel; ++kx) {
            const int64_t dy = py + reach - ky * dilation, dx = px + reach - kx * dilation;
            if (dy % stride || dx % stride) continue;
            phase.offsets.push_back((plan.pad + dy / stride) * pitch + (plan.pad + dx / stride) * C);
            const T* w = packed.data() + (ky * b.kernel + kx) * block;
            phase.weights.insert(phase.weights.end(), w, w + block);
          }
        all.push_back(std::move(phase));
      }
    return all;
  }

  // Calls f(phase, rows, columns, the phase's pixels in `to`)
  template <class F>
  static void each_phase(const std::vector<Phase>& all, int64_t stride, int64_t H, int64_t W, Image<T> to, F&& f) {
    for (const auto& p : all) {
      const int64_t rows = (H - p.y + stride - 1) / stride, columns = (W - p.x + stride - 1) / stride;
      f(p, rows, columns, Image<T>{to.at(p.y, p.x).data, stride * to.pitch, stride * to.step});
    }
  }

  // ------------------------------------------------------------ backward

  // Folds all stages again from the saved statistics.
  void refold() {
    std::vector<int64_t> all(plan.branches.size());
    std::iota(all.begin(), all.end(), 0);
    this->branches_in_parallel(all, [&](int64_t b) {
      if (plan.branches[b].kind == kDouble) this->prepare_inner(b);
      this->prepare_outer(b);
    });
  }

  void backward() {
    for (int64_t i = plan.states() - 1; i >= 0; --i) {
      if (!leaving[i].empty()) enter_state(i);
      if (i < plan.inputs) continue;
      image_sums[i].assign(N * C, T(0));
      groups.each([&](int64_t, int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
          pixel_sum<T>(flat(grads[i], n, plan.area(i), C), 1, plan.area(i), C, image_sums[i].data() + n * C);
      });
    }
  }

  Image<T> grad_row(int64_t i, int64_t n) const { return flat(grads[i], n, plan.area(i), C); }
  Image<T> grad_image(int64_t i, int64_t n) const {
    return {grads[i] + n * plan.area(i) * C, plan.width[i] * C, C};
  }

  // Adds to the gradient of state i all that comes through the edges that leave it.
  void enter_state(int64_t i) {
    sum_outer(i);
    const int64_t h = plan.height[plan.last()], w = plan.width[plan.last()], area = h * w;
    std::vector<int64_t> doubles;
    for (int64_t b : leaving[i])
      if (plan.branches[b].kind == kDouble) doubles.push_back(b);
    Borrowed<T> middle(doubles.size() * N * area * C);  // gradients between the halves of separable convolutions
    std::vector<T*> dz(plan.branches.size(), nullptr);
    for (size_t k = 0; k < doubles.size(); ++k) dz[doubles[k]] = middle.data + k * N * area * C;
    if (!doubles.empty()) pass_second_halves(doubles, dz, h, w);
    pass_first_halves(i, dz, h, w);
  }

  // A of every branch that leaves state i, and its unfolding.
  void sum_outer(int64_t i) {
    std::vector<int64_t> offsets(plan.branches.size(), 0);
    int64_t size = 0;
    const auto length = [&](int64_t b) {
      return plan.branches[b].kind == kSkip || diagonal(plan.branches[b]) ? C : C * outer[b].inner;
    };
    for (int64_t b : leaving[i]) offsets[b] = size, size += length(b);
    GroupSums<T> sums(groups, size);
    groups.each([&](int64_t group, int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        for (int64_t b : leaving[i]) {
          const Branch& branch = plan.branches[b];
          if (!kept(branch, n)) continue;
          const Stage<T>& stage = outer[b];
          const int64_t area = plan.area(branch.target);
          const Image<const T> dy = grad_row(branch.target, n);
          T* to = sums.of(group, offsets[b]);
          if (branch.kind == kSkip) product_sum<T>(dy, nullptr, as_row(state(i, n)), nullptr, 1, area, C, to);
          else if (diagonal(branch))
            product_sum<T>(dy, nullptr, flat(stage.d, n, area, C), stage.slot < 0 ? nullptr : stage.mu, 1, area, C, to);
          else outer_sum<T>(dy, C, flat(stage.d, n, area, stage.inner), stage.inner, stage.mu, 1, area, to);
        }
    });
    this->branches_in_parallel(leaving[i], [&](int64_t b) {
      std::vector<T> A(length(b));
      sums.total(A.data(), offsets[b], A.size());
      unfold_outer(b, A.data());
    });
  }

  // The gradient of d of a folded stage into `to`; dy may be missing (dropped).
  void input_gradient(const Stage<T>& stage, const StageGradient<T>& g, const T* dy, int64_t n, int64_t h, int64_t w,
                      Image<T> to) const {
    Source<T> sources[2];
    int count = 0;
    if (dy) sources[count++] = {{dy, w * C, C}, C, g.from_dy.data()};
    sources[count++] = {{stage.d + n * h * w * C, w * C, C}, C, g.from_d.data()};
    matrix_sum<T>(sources, count, h, w, C, g.constant.data(), false, false, to);
  }

  static void add_turned(const T* taps_first, int64_t count, int64_t channels, T* to) {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t t = 0; t < count; ++t) to[c * count + t] += taps_first[t * channels + c];
  }

  void pass_second_halves(const std::vector<int64_t>& doubles, const std::vector<T*>& dz, int64_t h, int64_t w) {
    const int64_t area = h * w, pitch = padded_pitch(w);
    std::vector<int64_t> offsets(plan.branches.size(), 0);
    std::vector<std::vector<Phase>> back(plan.branches.size());
    int64_t size = 0;
    for (int64_t b : doubles) {
      const Branch& branch = plan.branches[b];
      offsets[b] = size, size += C * C + C + taps(branch) * C;
      back[b] = phases(branch, 1, 1, pitch, this->taps_first(branch.weight + 2, taps(branch)), C);
    }
    GroupSums<T> sums(groups, size);
    groups.each([&](int64_t group, int64_t begin, int64_t end) {
      Scratch<T> d(padded_size(h, w)), z(padded_size(h, w)), plain(area * C);
      for (int64_t n = begin; n < end; ++n)
        for (int64_t b : doubles) {
          const Branch& branch = plan.branches[b];
          T* A = sums.of(group, offsets[b]);
          const T* dy = kept(branch, n) ? grads[branch.target] + n * area * C : nullptr;
          input_gradient(outer[b], outer_grads[b], dy, n, h, w, inside(d, w));
          this->half_way(inner[b], n, inside(z, w), h, w);
          if (weights_wanted) {
            const int64_t start = plan.pad - branch.kernel / 2;
            stencil_weight<T>({z + start * (pitch + C), pitch, C}, inside(d, w), h, w, C, A + C * C + C, branch.kernel,
                              pitch, C);
          }
          const Phase& p = back[b][0];
          stencil<T>({d, pitch, C}, {plain, w * C, C}, h, w, C, p.weights.data(), p.offsets.data(), taps(branch), false);
          T* to = dz[b] + n * area * C;
          rectify_gradient<T>(inside(z, w), {plain, w * C, C}, h, w, C, false, {to, w * C, C});
          outer_sum<T>({to, area * C, C}, C, flat(inner[b].d, n, area, C), C, inner[b].mu, 1, area, A);
          pixel_sum<T>({to, area * C, C}, 1, area, C, A + C * C);
        }
    });
    this->branches_in_parallel(doubles, [&](int64_t b) {
      const Branch& branch = plan.branches[b];
      std::vector<T> A(C * C), sum(C), turned(taps(branch) * C);
      sums.total(A.data(), offsets[b], C * C);
      sums.total(sum.data(), offsets[b] + C * C, C);
      const std::vector<T> du = unfold(inner[b], A.data(), sum, weights_wanted ? grad_of_weight(branch.weight + 1) : nullptr,
                                       inner_grads[b]);
      affine_gradient(inner[b], T(1), du, sum);
      if (!weights_wanted) return;
      sums.total(turned.data(), offsets[b] + C * C + C, turned.size());
      add_turned(turned.data(), taps(branch), C, grad_of_weight(branch.weight + 2));
    });
  }

  void pass_first_halves(int64_t i, const std::vector<T*>& dz, int64_t h, int64_t w) {
    const int64_t H = plan.height[i], W = plan.width[i], stride = plan.stride(i), area = h * w;
    const int64_t pitch = padded_pitch(W), low_pitch = padded_pitch(w);
    std::vector<int64_t> offsets(plan.branches.size(), 0);
    std::vector<std::vector<Phase>> back(plan.branches.size());
    int64_t size = 0;
    bool rectified = false;
    for (int64_t b : leaving[i]) {
      const Branch& branch = plan.branches[b];
      rectified |= branch.kind >= kSingle && branch.kind <= kDense;
      const bool dense = branch.kind == kDense;
      if (!dense && branch.kind != kSingle && branch.kind != kDouble) continue;
      const int64_t block = dense ? C * C : C;
      offsets[b] = size, size += taps(branch) * block;
      const auto packed = dense ? this->dense_taps(branch.weight, taps(branch), true)
                                : this->taps_first(branch.weight, taps(branch));
      back[b] = phases(branch, branch.dilation, stride, low_pitch, packed, block);
    }
    GroupSums<T> sums(groups, weights_wanted ? size : 0);
    groups.each([&](int64_t group, int64_t begin, int64_t end) {
      Scratch<T> x(rectified ? padded_size(H, W) : 1), d(padded_size(h, w)), wide(2 * area * C);
      Scratch<T> through(rectified ? H * W * C : 1);  // the gradient behind the ReLU
      const Image<T> behind{through, W * C, C};
      for (int64_t n = begin; n < end; ++n) {
        if (rectified) {
          rectify<T>(state(i, n), inside(x, W), H, W, C);
          std::fill_n(through.data, H * W * C, T(0));
        }
        for (int64_t b : leaving[i]) {
          const Branch& branch = plan.branches[b];
          const T* dy = kept(branch, n) ? grads[branch.target] + n * area * C : nullptr;
          if (branch.kind == kSingle) input_gradient(outer[b], outer_grads[b], dy, n, h, w, inside(d, w));
          else if (branch.kind == kDouble) input_gradient(inner[b], inner_grads[b], dz[b] + n * area * C, n, h, w, inside(d, w));
          else if (branch.kind == kDense) {
            dense_gradient(b, dy, n, h, w, inside(d, w));
            T* to = weights_wanted ? sums.of(group, offsets[b]) : nullptr;
            const auto at = this->tap_offsets(branch.kernel, branch.dilation, pitch, C);
            for (int64_t t = 0; weights_wanted && t < taps(branch); ++t)
              outer_sum<T>({x + at[t], stride * pitch, stride * C}, C, inside(d, w), C, nullptr, h, w, to + t * C * C);
            each_phase(back[b], stride, H, W, behind, [&](const Phase& p, int64_t rows, int64_t columns, Image<T> to_phase) {
              std::vector<Source<T>> sources;
              for (size_t t = 0; t < p.offsets.size(); ++t)
                sources.push_back({{d + p.offsets[t], low_pitch, C}, C, p.weights.data() + t * C * C});
              if (!sources.empty())
                matrix_sum<T>(sources.data(), sources.size(), rows, columns, C, nullptr, true, false, to_phase);
            });
            continue;
          } else continue;
          if (weights_wanted) {
            const int64_t start = plan.pad - branch.dilation * (branch.kernel / 2);
            stencil_weight<T>({x + start * (pitch + C), stride * pitch, stride * C}, inside(d, w), h, w, C,
                              sums.of(group, offsets[b]), branch.kernel, branch.dilation * pitch, branch.dilation * C);
          }
          each_phase(back[b], stride, H, W, behind, [&](const Phase& p, int64_t rows, int64_t columns, Image<T> to) {
            stencil<T>({d, low_pitch, C}, to, rows, columns, C, p.weights.data(), p.offsets.data(), p.offsets.size(), true);
          });
        }
        for (int64_t kind : {kPair, kPoint}) spread_samples(kind, i, n, stride, h, w, wide, behind);
        if (rectified) rectify_gradient<T>(state(i, n), behind, H, W, C, true, grad_image(i, n));
        pass_skips(i, n);
        for (int64_t kind : {kMax, kAverage}) pass_pools(kind, i, n, stride, h, w, wide);
      }
    });
    if (!weights_wanted) return;
    this->branches_in_parallel(leaving[i], [&](int64_t b) {
      const Branch& branch = plan.branches[b];
      if (branch.kind != kSingle && branch.kind != kDouble && branch.kind != kDense) return;
      std::vector<T> turned(taps(branch) * (branch.kind == kDense ? C * C : C));
      sums.total(turned.data(), offsets[b], turned.size());
      T* to = grad_of_weight(branch.weight);
      if (branch.kind != kDense) return add_turned(turned.data(), taps(branch), C, to);
      for (int64_t t = 0; t < taps(branch); ++t)
        for (int64_t in = 0; in < C; ++in)
          for (int64_t o = 0; o < C; ++o) to[(o * C + in) * taps(branch) + t] = turned[(t * C + in) * C + o];
    });
  }

  void dense_gradient(int64_t b, const T* dy, int64_t n, int64_t h, int64_t w, Image<T> to) const {
    const auto& g = outer_grads[b];
    std::vector<Scaled<T>> sources{{{outer[b].d + n * h * w * C, w * C, C}, g.from_d.data()}};
    if (dy) sources.push_back({{dy, w * C, C}, g.from_dy.data()});
    combine<T>(sources, g.constant.data(), h, w, C, false, to);
  }

  // Gradients of the samplings that 1x1 convolutions share: one product for all edges, then added at the sampled pixels.
  void spread_samples(int64_t kind, int64_t i, int64_t n, int64_t stride, int64_t h, int64_t w, T* wide, Image<T> to) const {
    const int64_t K = kind == kPair ? 2 * C : C, area = h * w;
    std::vector<Source<T>> sources;
    std::vector<T> constant(K, T(0)), from_d(K * K, T(0));
    const Stage<T>* stage = nullptr;
    for (int64_t b : leaving[i]) {
      const Branch& branch = plan.branches[b];
      if (branch.kind != kind) continue;
      const auto& g = outer_grads[b];
      stage = &outer[b];
      if (kept(branch, n)) sources.push_back({grad_row(branch.target, n), C, g.from_dy.data()});
      for (int64_t k = 0; k < K; ++k) constant[k] += g.constant[k];
      for (int64_t k = 0; k < K * K; ++k) from_d[k] += g.from_d[k];
    }
    if (!stage) return;
    sources.push_back({flat(stage->d, n, area, K), K, from_d.data()});
    matrix_sum<T>(sources.data(), sources.size(), 1, area, K, constant.data(), false, false, {wide, area * K, K});
    for (int64_t y = 0; y < h; ++y)
      for (int64_t x = 0; x < w; ++x)
        for (int64_t part = 0; part < K / C; ++part) {
          if (stride * y + part >= plan.height[i] || stride * x + part >= plan.width[i]) continue;  // beyond an odd side
          T* at = to.at(stride * y + part, stride * x + part).data;
          const T* from = wide + (y * w + x) * K + part * C;
          for (int64_t c = 0; c < C; ++c) at[c] += from[c];
        }
  }

  void pass_skips(int64_t i, int64_t n) const {
    std::vector<Scaled<T>> sources;
    for (int64_t b : leaving[i])
      if (plan.branches[b].kind == kSkip && kept(plan.branches[b], n))
        sources.push_back({grad_row(plan.branches[b].target, n), outer[b].gain.data()});
    if (!sources.empty()) combine<T>(sources, nullptr, 1, plan.area(i), C, true, grad_row(i, n));
  }

  void pass_pools(int64_t kind, int64_t i, int64_t n, int64_t stride, int64_t h, int64_t w, T* plain) const {
    std::vector<Scaled<T>> sources;
    std::vector<T> constant(C, T(0)), from_d(C, T(0));
    const Stage<T>* stage = nullptr;
    for (int64_t b : leaving[i]) {
      const Branch& branch = plan.branches[b];
      if (branch.kind != kind) continue;
      const auto& g = outer_grads[b];
      stage = &outer[b];
      if (kept(branch, n)) sources.push_back({grad_row(branch.target, n), g.from_dy.data()});
      for (int64_t c = 0; c < C; ++c) constant[c] += g.constant[c], from_d[c] += g.from_d[c];
    }
    if (!stage) return;
    const int64_t area = h * w;
    sources.push_back({flat(stage->d, n, area, C), from_d.data()});
    combine<T>(sources, constant.data(), 1, area, C, false, {plain, area * C, C});
    pool_backward<T>(kind == kMax, state(i, n), {stage->d + n * area * C, w * C, C}, {plain, w * C, C}, plan.height[i],
                     plan.width[i], stride, C, h, w, grad_image(i, n));
  }
};

}  // namespace nas_moreau
