// 3x3 pooling with padding 1 over channels-last images; windows are clipped at the border.
#pragma once
#include "loops.h"

namespace nas_moreau {

// Calls f(first row, end row, first column, end column) with the window of output pixel (y, x).
template <class F>
inline void window(int64_t y, int64_t x, int64_t stride, int64_t height, int64_t width, F&& f) {
  const int64_t top = y * stride - 1, left = x * stride - 1;
  f(std::max<int64_t>(top, 0), std::min(top + 3, height), std::max<int64_t>(left, 0), std::min(left + 3, width));
}

template <class T>
void pool_forward(bool largest, Image<const T> in, int64_t height, int64_t width, int64_t stride, int64_t channels,
                  Image<T> out, int64_t rows, int64_t columns) {
  channel_blocks<T>(0, channels, [&](auto lanes, int64_t c) {
    constexpr int L = decltype(lanes)::value;
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < columns; ++x)
        window(y, x, stride, height, width, [&](int64_t y0, int64_t y1, int64_t x0, int64_t x1) {
          Vec<T, L> v = load<T, L>(in.at(y0, x0).data + c);
          if (largest) {
            for (int64_t i = y0; i < y1; ++i)
              for (int64_t j = x0; j < x1; ++j) {
                const Vec<T, L> u = load<T, L>(in.at(i, j).data + c);
                v = (u <= v) ? v : (v == v ? u : v);  // NaN wins, as in torch
              }
          } else {
            v = Vec<T, L>{};
            for (int64_t i = y0; i < y1; ++i)
              for (int64_t j = x0; j < x1; ++j) v += load<T, L>(in.at(i, j).data + c);
            v *= splat<T, L>(T(1) / T((y1 - y0) * (x1 - x0)));
          }
          store<T, L>(out.at(y, x).data + c, v);
        });
  });
}

// grad_in += gradient; the first largest element in reading order takes the gradient of a maximum, as in torch.
template <class T>
void pool_backward(bool largest, Image<const T> in, Image<const T> out, Image<const T> grad, int64_t height,
                   int64_t width, int64_t stride, int64_t channels, int64_t rows, int64_t columns, Image<T> grad_in) {
  channel_blocks<T>(0, channels, [&](auto lanes, int64_t c) {
    constexpr int L = decltype(lanes)::value;
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < columns; ++x)
        window(y, x, stride, height, width, [&](int64_t y0, int64_t y1, int64_t x0, int64_t x1) {
          Vec<T, L> left = load<T, L>(grad.at(y, x).data + c);  // what no element has taken yet
          if (!largest) left *= splat<T, L>(T(1) / T((y1 - y0) * (x1 - x0)));
          const Vec<T, L> top = load<T, L>(out.at(y, x).data + c);
          for (int64_t i = y0; i < y1; ++i)
            for (int64_t j = x0; j < x1; ++j) {
              T* to = grad_in.at(i, j).data + c;
              Vec<T, L> take = left;
              if (largest) {
                const auto here = load<T, L>(in.at(i, j).data + c) == top;
                take = here ? left : Vec<T, L>{};
                left = here ? Vec<T, L>{} : left;
              }
              store<T, L>(to, load<T, L>(to) + take);
            }
        });
  });
}

}  // namespace nas_moreau
