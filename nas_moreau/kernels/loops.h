// The four inner loops that all native work is made of, for channels-last images, in float and double.
//
//   stencil          depthwise convolution and its input gradient: a list of taps over a zero-padded image
//   stencil_weight   depthwise convolution's weight gradient
//   matrix_sum       sum over sources of (pixels x K) @ (K x channels): pointwise and dense convolution, mixtures
//   outer_sum        sum over pixels of a (outer) b: weight gradients and covariance
//
// Vectors are the compiler's own (GCC and Clang `vector_size`), so the same text serves AVX-512, AVX2, SSE and NEON.
// A pixel's channels are contiguous; images are described by (row pitch, pixel pitch) counted in elements.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

namespace nas_moreau {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <class T, int L>
struct VectorOf {
  typedef T type __attribute__((vector_size(L * sizeof(T))));
};
template <class T>
struct VectorOf<T, 1> {
  typedef T type;
};
template <class T, int L>
using Vec = typename VectorOf<T, L>::type;

template <class T, int L>
inline Vec<T, L> load(const T* from) {
  Vec<T, L> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
template <class T, int L>
inline void store(T* to, Vec<T, L> v) {
  std::memcpy(to, &v, sizeof(v));
}
template <class T, int L>
inline Vec<T, L> splat(T value) {
  return Vec<T, L>{} + value;
}

// max(v, 0); NaN stays NaN
template <class T, int L>
inline Vec<T, L> positive_part(Vec<T, L> v) {
  return v <= Vec<T, L>{} ? Vec<T, L>{} : v;
}

// Calls f(lanes, first channel) on blocks that cover [begin, end): the widest vectors first, narrower ones for the rest.
template <class T, int L = kLanes<T>, class F>
inline void channel_blocks(int64_t begin, int64_t end, F&& f) {
  for (; begin + L <= end; begin += L) f(std::integral_constant<int, L>{}, begin);
  if constexpr (L > 1) channel_blocks<T, L / 2>(begin, end, f);
}

// A scratch image that stays aligned to vectors and is zero at the start.
template <class T>
struct Scratch {
  T* data = nullptr;
  explicit Scratch(int64_t size) {
    const size_t bytes = (size_t(size) * sizeof(T) + 127) / 64 * 64;
    data = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (!data) std::abort();
    std::memset(static_cast<void*>(data), 0, bytes);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data); }
  operator T*() const { return data; }
};

// An image in memory: element (row, column, channel) lies at data[row * pitch + column * step + channel].
template <class T>
struct Image {
  T* data;
  int64_t pitch, step;
  Image at(int64_t row, int64_t column) const { return {data + row * pitch + column * step, pitch, step}; }
  operator Image<const T>() const { return {data, pitch, step}; }
};

// ---------------------------------------------------------------- stencil

template <class T, int L, int P>
inline void stencil_strip(const T* in, int64_t in_step, T* out, int64_t out_step, const T* weight, int64_t channels,
                          const int64_t* offsets, int taps, bool add) {
  Vec<T, L> sum[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) sum[p] = add ? load<T, L>(out + p * out_step) : Vec<T, L>{};
  for (int t = 0; t < taps; ++t) {
    const Vec<T, L> w = load<T, L>(weight + t * channels);
    const T* from = in + offsets[t];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) sum[p] += w * load<T, L>(from + p * in_step);
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) store<T, L>(out + p * out_step, sum[p]);
}

template <class T>
void stencil_rows(Image<const T> in, Image<T> out, int64_t rows, int64_t columns, int64_t channels, const T* weight,
                  const int64_t* offsets, int taps, bool add) {
  for (int64_t row = 0; row < rows; ++row)
    channel_blocks<T>(0, channels, [&](auto lanes, int64_t c) {
      constexpr int L = decltype(lanes)::value;
      const T* from = in.data + row * in.pitch + c;
      T* to = out.data + row * out.pitch + c;
      int64_t x = 0;
      for (; x + 8 <= columns; x += 8)
        stencil_strip<T, L, 8>(from + x * in.step, in.step, to + x * out.step, out.step, weight + c, channels, offsets,
                               taps, add);
      for (; x + 4 <= columns; x += 4)
        stencil_strip<T, L, 4>(from + x * in.step, in.step, to + x * out.step, out.step, weight + c, channels, offsets,
                               taps, add);
      for (; x < columns; ++x)
        stencil_strip<T, L, 1>(from + x * in.step, in.step, to + x * out.step, out.step, weight + c, channels, offsets,
                               taps, add);
    });
}

// How many channels a row may be regrouped into so that whole vectors fit: a row of stride 1 is one flat array whose
// weights repeat with period `channels`, so C=8 or C=36 can run as 16 or 144 channels of fewer, wider pixels.
template <class T>
inline int64_t regrouped(int64_t channels, int64_t columns) {
  if (channels % kLanes<T> == 0) return channels;
  const int64_t wide = std::lcm(channels, int64_t(kLanes<T>));
  return (columns * channels) % wide == 0 ? wide : channels;
}

// out[y, x, c] (+)= sum_t weight[t, c] * in[y * in.pitch + x * in.step + offsets[t] + c]
template <class T>
void stencil(Image<const T> in, Image<T> out, int64_t rows, int64_t columns, int64_t channels, const T* weight,
             const int64_t* offsets, int taps, bool add) {
  const int64_t wide = in.step == channels && out.step == channels ? regrouped<T>(channels, columns) : channels;
  if (wide == channels) return stencil_rows<T>(in, out, rows, columns, channels, weight, offsets, taps, add);
  std::vector<T> repeated(taps * wide);
  for (int t = 0; t < taps; ++t)
    for (int64_t c = 0; c < wide; ++c) repeated[t * wide + c] = weight[t * channels + c % channels];
  stencil_rows<T>({in.data, in.pitch, wide}, {out.data, out.pitch, wide}, rows, columns * channels / wide, wide,
                  repeated.data(), offsets, taps, add);
}

// ---------------------------------------------------------------- stencil_weight

// R rows of K taps at once: R * K sums stay in registers while the image streams by.
template <class T, int L, int K, int R>
inline void stencil_weight_block(Image<const T> in, Image<const T> grad, int64_t rows, int64_t columns, T* weight,
                                 int64_t channels, int64_t tap_row, int64_t tap_column) {
  Vec<T, L> sum[R][K] = {};
  for (int64_t row = 0; row < rows; ++row) {
    const T* from[R];
    for (int r = 0; r < R; ++r) from[r] = in.data + row * in.pitch + r * tap_row;
    const T* g = grad.data + row * grad.pitch;
    for (int64_t x = 0; x < columns; ++x, g += grad.step) {
      const Vec<T, L> v = load<T, L>(g);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) sum[r][k] += v * load<T, L>(from[r] + k * tap_column);
        from[r] += in.step;
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int k = 0; k < K; ++k) {
      T* to = weight + (r * K + k) * channels;
      store<T, L>(to, load<T, L>(to) + sum[r][k]);
    }
}

template <class T, int K>
void stencil_weight_rows(Image<const T> in, Image<const T> grad, int64_t rows, int64_t columns, int64_t channels,
                         T* weight, int64_t tap_row, int64_t tap_column) {
  // as many rows of taps as the registers hold
  constexpr int R = kVectorBytes == 64 ? (K == 7 ? 3 : K) : (K == 3 ? 3 : 2);
  channel_blocks<T>(0, channels, [&](auto lanes, int64_t c) {
    constexpr int L = decltype(lanes)::value;
    const Image<const T> g{grad.data + c, grad.pitch, grad.step};
    int r = 0;
    for (; r + R <= K; r += R)
      stencil_weight_block<T, L, K, R>({in.data + r * tap_row + c, in.pitch, in.step}, g, rows, columns,
                                       weight + r * K * channels + c, channels, tap_row, tap_column);
    for (; r < K; ++r)
      stencil_weight_block<T, L, K, 1>({in.data + r * tap_row + c, in.pitch, in.step}, g, rows, columns,
                                       weight + r * K * channels + c, channels, tap_row, tap_column);
  });
}

// weight[ky, kx, c] += sum_{y, x} grad[y, x, c] * in[y * in.pitch + x * in.step + ky * tap_row + kx * tap_column + c]
template <class T>
void stencil_weight(Image<const T> in, Image<const T> grad, int64_t rows, int64_t columns, int64_t channels, T* weight,
                    int kernel, int64_t tap_row, int64_t tap_column) {
  const auto run = [&](Image<const T> a, Image<const T> g, int64_t width, int64_t wide, T* to) {
    if (kernel == 3) return stencil_weight_rows<T, 3>(a, g, rows, width, wide, to, tap_row, tap_column);
    if (kernel == 5) return stencil_weight_rows<T, 5>(a, g, rows, width, wide, to, tap_row, tap_column);
    return stencil_weight_rows<T, 7>(a, g, rows, width, wide, to, tap_row, tap_column);
  };
  const int64_t wide = in.step == channels && grad.step == channels ? regrouped<T>(channels, columns) : channels;
  if (wide == channels) return run(in, grad, columns, channels, weight);
  const int taps = kernel * kernel;
  std::vector<T> repeated(taps * wide, T(0));
  run({in.data, in.pitch, wide}, {grad.data, grad.pitch, wide}, columns * channels / wide, wide, repeated.data());
  for (int t = 0; t < taps; ++t)
    for (int64_t c = 0; c < wide; ++c) weight[t * channels + c % channels] += repeated[t * wide + c];
}

// ---------------------------------------------------------------- matrix_sum

// One summand: pixels (rows x columns x inner) times matrix (inner x channels, row-major).
template <class T>
struct Source {
  Image<const T> pixels;
  int64_t inner;
  const T* matrix;
};

template <class T, int L, int Q, int P>
inline void matrix_tile(const Source<T>* sources, int count, int64_t row, int64_t column, int64_t c, int64_t channels,
                        const T* bias, bool add, bool relu, T* out, int64_t out_step) {
  Vec<T, L> sum[P][Q];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
    const Vec<T, L> b = bias ? load<T, L>(bias + c + q * L) : Vec<T, L>{};
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) sum[p][q] = add ? b + load<T, L>(out + p * out_step + q * L) : b;
  }
  for (int s = 0; s < count; ++s) {
    const Source<T>& source = sources[s];
    const int64_t step = source.pixels.step;
    const T* a = source.pixels.data + row * source.pixels.pitch + column * step;
    const T* m = source.matrix + c;
    for (int64_t k = 0; k < source.inner; ++k, ++a, m += channels) {
      Vec<T, L> b[Q];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) b[q] = load<T, L>(m + q * L);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        const T value = a[p * step];
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) sum[p][q] += value * b[q];
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      Vec<T, L> v = sum[p][q];
      if (relu) v = positive_part<T, L>(v);
      store<T, L>(out + p * out_step + q * L, v);
    }
}

// out[y, x, c] = bias[c] + (add: out[y, x, c]) + sum_s sum_k source_s[y, x, k] * matrix_s[k, c], then perhaps ReLU
template <class T>
void matrix_sum(const Source<T>* sources, int count, int64_t rows, int64_t columns, int64_t channels, const T* bias,
                bool add, bool relu, Image<T> out) {
  for (int64_t row = 0; row < rows; ++row) {
    const auto strip = [&](auto lanes, auto vectors, int64_t c) {
      constexpr int L = decltype(lanes)::value, Q = decltype(vectors)::value;
      T* to = out.data + row * out.pitch + c;
      int64_t x = 0;
      for (; x + 8 <= columns; x += 8)
        matrix_tile<T, L, Q, 8>(sources, count, row, x, c, channels, bias, add, relu, to + x * out.step, out.step);
      for (; x + 4 <= columns; x += 4)
        matrix_tile<T, L, Q, 4>(sources, count, row, x, c, channels, bias, add, relu, to + x * out.step, out.step);
      for (; x < columns; ++x)
        matrix_tile<T, L, Q, 1>(sources, count, row, x, c, channels, bias, add, relu, to + x * out.step, out.step);
    };
    constexpr int L = kLanes<T>;
    int64_t c = 0;
    for (; c + 2 * L <= channels; c += 2 * L)
      strip(std::integral_constant<int, L>{}, std::integral_constant<int, 2>{}, c);
    channel_blocks<T>(c, channels, [&](auto lanes, int64_t at) { strip(lanes, std::integral_constant<int, 1>{}, at); });
  }
}

// ---------------------------------------------------------------- outer_sum

template <class T, int L, int Q, int R>
inline void outer_tile(Image<const T> a, Image<const T> b, const T* centre, int64_t rows, int64_t columns, T* sum_to,
                       int64_t pitch) {
  Vec<T, L> sum[R][Q], mu[Q];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
    mu[q] = centre ? load<T, L>(centre + q * L) : Vec<T, L>{};
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][q] = load<T, L>(sum_to + r * pitch + q * L);
  }
  for (int64_t row = 0; row < rows; ++row) {
    const T* left = a.data + row * a.pitch;
    const T* right = b.data + row * b.pitch;
    for (int64_t x = 0; x < columns; ++x, left += a.step, right += b.step) {
      Vec<T, L> v[Q];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) v[q] = load<T, L>(right + q * L) - mu[q];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) sum[r][q] += left[r] * v[q];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) store<T, L>(sum_to + r * pitch + q * L, sum[r][q]);
}

// sum[i, j] += sum_{y, x} a[y, x, i] * (b[y, x, j] - centre[j]); `upper`: only tiles that touch j >= i are needed
template <class T>
void outer_sum(Image<const T> a, int64_t a_channels, Image<const T> b, int64_t b_channels, const T* centre,
               int64_t rows, int64_t columns, T* sum, bool upper = false) {
  const auto strip = [&](auto lanes, auto vectors, int64_t j) {
    constexpr int L = decltype(lanes)::value, Q = decltype(vectors)::value, R = 8;
    const int64_t needed = upper ? std::min(a_channels, j + L * Q) : a_channels;
    const T* mu = centre ? centre + j : nullptr;
    const Image<const T> right{b.data + j, b.pitch, b.step};
    int64_t i = 0;
    if constexpr (Q == 1 && kVectorBytes == 64)
      for (; i + 2 * R <= needed; i += 2 * R)
        outer_tile<T, L, Q, 2 * R>({a.data + i, a.pitch, a.step}, right, mu, rows, columns, sum + i * b_channels + j,
                                   b_channels);
    for (; i + R <= needed; i += R)
      outer_tile<T, L, Q, R>({a.data + i, a.pitch, a.step}, right, mu, rows, columns, sum + i * b_channels + j,
                             b_channels);
    for (; i + 4 <= needed; i += 4)
      outer_tile<T, L, Q, 4>({a.data + i, a.pitch, a.step}, right, mu, rows, columns, sum + i * b_channels + j,
                             b_channels);
    for (; i < needed; ++i)
      outer_tile<T, L, Q, 1>({a.data + i, a.pitch, a.step}, right, mu, rows, columns, sum + i * b_channels + j,
                             b_channels);
  };
  constexpr int L = kLanes<T>;
  int64_t j = 0;
  for (; j + 2 * L <= b_channels; j += 2 * L)
    strip(std::integral_constant<int, L>{}, std::integral_constant<int, 2>{}, j);
  channel_blocks<T>(j, b_channels, [&](auto lanes, int64_t at) { strip(lanes, std::integral_constant<int, 1>{}, at); });
}

// ---------------------------------------------------------------- light passes over pixels

// sum[c] += sum over pixels of a - centre; a missing centre is 0
template <class T>
void pixel_sum(Image<const T> a, int64_t rows, int64_t columns, int64_t channels, T* sum, const T* centre = nullptr) {
  channel_blocks<T>(0, channels, [&](auto lanes, int64_t c) {
    constexpr int L = decltype(lanes)::value;
    const Vec<T, L> mu = centre ? load<T, L>(centre + c) : Vec<T, L>{};
    Vec<T, L> total[4] = {};
    for (int64_t row = 0; row < rows; ++row) {
      const T* from = a.data + row * a.pitch + c;
      int64_t x = 0;
      for (; x + 4 <= columns; x += 4)
        for (int p = 0; p < 4; ++p) total[p] += load<T, L>(from + (x + p) * a.step) - mu;
      for (; x < columns; ++x) total[0] += load<T, L>(from + x * a.step) - mu;
    }
    store<T, L>(sum + c, load<T, L>(sum + c) + ((total[0] + total[1]) + (total[2] + total[3])));
  });
}

// sum[c] += sum over pixels of (a - a_centre) * (b - b_centre); a missing centre is 0
template <class T>
void product_sum(Image<const T> a, const T* a_centre, Image<const T> b, const T* b_centre, int64_t rows,
                 int64_t columns, int64_t channels, T* sum) {
  channel_blocks<T>(0, channels, [&](auto lanes, int64_t c) {
    constexpr int L = decltype(lanes)::value;
    const Vec<T, L> ma = a_centre ? load<T, L>(a_centre + c) : Vec<T, L>{};
    const Vec<T, L> mb = b_centre ? load<T, L>(b_centre + c) : Vec<T, L>{};
    Vec<T, L> total[4] = {};
    for (int64_t row = 0; row < rows; ++row) {
      const T* left = a.data + row * a.pitch + c;
      const T* right = b.data + row * b.pitch + c;
      int64_t x = 0;
      for (; x + 4 <= columns; x += 4)
        for (int p = 0; p < 4; ++p)
          total[p] += (load<T, L>(left + (x + p) * a.step) - ma) * (load<T, L>(right + (x + p) * b.step) - mb);
      for (; x < columns; ++x) total[0] += (load<T, L>(left + x * a.step) - ma) * (load<T, L>(right + x * b.step) - mb);
    }
    store<T, L>(sum + c, load<T, L>(sum + c) + ((total[0] + total[1]) + (total[2] + total[3])));
  });
}

// One summand of `combine`: scale[c] * pixels[y, x, c]
template <class T>
struct Scaled {
  Image<const T> pixels;
  const T* scale;
};

// out[y, x, c] = (add: out[y, x, c]) + constant[c] + sum_s scale_s[c] * source_s[y, x, c]
template <class T>
void combine(const std::vector<Scaled<T>>& sources, const T* constant, int64_t rows, int64_t columns, int64_t channels,
             bool add, Image<T> out) {
  channel_blocks<T>(0, channels, [&](auto lanes, int64_t c) {
    constexpr int L = decltype(lanes)::value;
    const Vec<T, L> start = constant ? load<T, L>(constant + c) : Vec<T, L>{};
    for (int64_t row = 0; row < rows; ++row) {
      T* to = out.data + row * out.pitch + c;
      for (int64_t x = 0; x < columns; ++x) {
        Vec<T, L> v = add ? start + load<T, L>(to + x * out.step) : start;
        for (const auto& s : sources)
          v += load<T, L>(s.scale + c) * load<T, L>(s.pixels.data + row * s.pixels.pitch + x * s.pixels.step + c);
        store<T, L>(to + x * out.step, v);
      }
    }
  });
}

// out = max(in, 0)
template <class T>
void rectify(Image<const T> in, Image<T> out, int64_t rows, int64_t columns, int64_t channels) {
  channel_blocks<T>(0, channels, [&](auto lanes, int64_t c) {
    constexpr int L = decltype(lanes)::value;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t x = 0; x < columns; ++x) {
        const Vec<T, L> v = load<T, L>(in.data + row * in.pitch + x * in.step + c);
        store<T, L>(out.data + row * out.pitch + x * out.step + c, positive_part<T, L>(v));
      }
  });
}

// grad = (add: grad) + (sign > 0 ? from : 0): the gradient of ReLU, its mask taken from any tensor of the same sign
template <class T>
void rectify_gradient(Image<const T> sign, Image<const T> from, int64_t rows, int64_t columns, int64_t channels, bool add,
                      Image<T> grad) {
  channel_blocks<T>(0, channels, [&](auto lanes, int64_t c) {
    constexpr int L = decltype(lanes)::value;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t x = 0; x < columns; ++x) {
        const Vec<T, L> s = load<T, L>(sign.data + row * sign.pitch + x * sign.step + c);
        const Vec<T, L> g = load<T, L>(from.data + row * from.pitch + x * from.step + c);
        T* to = grad.data + row * grad.pitch + x * grad.step + c;
        const Vec<T, L> masked = s <= Vec<T, L>{} ? Vec<T, L>{} : g;
        store<T, L>(to, add ? load<T, L>(to) + masked : masked);
      }
  });
}

}  // namespace nas_moreau
