// The operators torch sees. `mixed_cell` is a whole cell; `kernels/cell.py` gives it its gradient and its shapes.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "gradient.h"
#include "memory.h"

namespace nas_moreau {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

Tensors flat_tensors(at::TensorList list) {
  Tensors all;
  for (const auto& t : list) all.push_back(t.contiguous());
  return all;
}
Tensors channels_last(at::TensorList list) {
  Tensors all;
  for (const auto& t : list) {
    TORCH_CHECK(t.dim() == 4 && t.sizes() == list[0].sizes(), "nas_moreau: the inputs of a cell must be images of one size");
    all.push_back(t.contiguous(at::MemoryFormat::ChannelsLast));
  }
  return all;
}
Tensor image_like(const Tensor& like, int64_t channels, int64_t height, int64_t width) {
  return at::empty({like.size(0), channels, height, width}, like.options(), at::MemoryFormat::ChannelsLast);
}
Tensor pooled(int64_t size, const at::TensorOptions& options) {
  const int64_t bytes = std::max<int64_t>(size, 1) * options.dtype().itemsize();
  void* block = Pool::instance().take(bytes);
  return at::from_blob(block, {size}, [block, bytes](void*) { Pool::instance().give(block, bytes); }, options);
}
c10::optional<Tensor> flat_mask(const c10::optional<Tensor>& keep) {
  return keep ? c10::optional<Tensor>(keep->contiguous()) : c10::nullopt;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mixed_cell(at::TensorList states, const Tensor& mixture, at::TensorList weights,
                                                      at::TensorList affine, const c10::optional<Tensor>& keep,
                                                      const c10::optional<Tensor>& statistics, at::IntArrayRef numbers) {
  const auto inputs = channels_last(states), w = flat_tensors(weights), a = flat_tensors(affine);
  const auto mix = mixture.contiguous();
  const auto mask = flat_mask(keep);
  Tensor out, saved, moments, stats;
  AT_DISPATCH_FLOATING_TYPES(inputs[0].scalar_type(), "mixed_cell", [&] {
    Cell<scalar_t> cell(numbers, inputs, mix, w, a, mask, !statistics);
    const auto& plan = cell.plan;
    out = image_like(inputs[0], plan.out_channels(), plan.height[plan.last()], plan.width[plan.last()]);
    saved = pooled(cell.saved_size, out.options());
    moments = at::zeros({cell.moments_size}, out.options());
    stats = statistics ? statistics->clone() : at::empty({plan.slots, 2, plan.channels}, out.options());
    cell.attach(saved.data_ptr<scalar_t>(), moments.data_ptr<scalar_t>(), stats.data_ptr<scalar_t>(),
                out.data_ptr<scalar_t>());
    cell.forward();
  });
  return {out, saved, moments, stats};
}

// Gradients of the states, the mixture and, if wanted, the weights and the affine parameters, in this order.
Tensors mixed_cell_backward(const Tensor& grad, at::TensorList states, const Tensor& mixture, at::TensorList weights,
                            at::TensorList affine, const c10::optional<Tensor>& keep, const Tensor& out,
                            const Tensor& saved, const Tensor& moments, const Tensor& stats, at::IntArrayRef numbers,
                            bool weights_wanted) {
  const auto inputs = channels_last(states), w = flat_tensors(weights), a = flat_tensors(affine);
  const auto mix = mixture.contiguous(), dy = grad.contiguous(at::MemoryFormat::ChannelsLast);
  const auto mask = flat_mask(keep);
  Tensors results;
  AT_DISPATCH_FLOATING_TYPES(inputs[0].scalar_type(), "mixed_cell_backward", [&] {
    CellGradient<scalar_t> cell(numbers, inputs, mix, w, a, mask, weights_wanted);
    const auto& plan = cell.plan;
    cell.attach(saved.data_ptr<scalar_t>(), moments.data_ptr<scalar_t>(), stats.data_ptr<scalar_t>(),
                out.data_ptr<scalar_t>());
    Tensors grads;
    for (int64_t i = 0; i < plan.states(); ++i) {
      grads.push_back(image_like(inputs[0], plan.channels, plan.height[i], plan.width[i]));
      const int64_t place = i < plan.inputs ? -1 : plan.places[i - plan.inputs];
      if (place < 0) grads.back().zero_();
      else grads.back().copy_(dy.narrow(1, place * plan.channels, plan.channels));
      cell.grads.push_back(grads.back().data_ptr<scalar_t>());
    }
    cell.refold();
    cell.backward();
    results.assign(grads.begin(), grads.begin() + plan.inputs);
    results.push_back(at::empty(mix.sizes(), mix.options()));
    std::copy(cell.mixture_grads.begin(), cell.mixture_grads.end(), results.back().data_ptr<scalar_t>());
    results.insert(results.end(), cell.weight_grads.begin(), cell.weight_grads.end());
    results.insert(results.end(), cell.affine_grads.begin(), cell.affine_grads.end());
  });
  return results;
}

}  // namespace

TORCH_LIBRARY(nas_moreau, library) {
  library.def(
      "mixed_cell(Tensor[] states, Tensor mixture, Tensor[] weights, Tensor[] affine, Tensor? keep, Tensor? statistics, "
      "int[] plan) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "mixed_cell_backward(Tensor grad, Tensor[] states, Tensor mixture, Tensor[] weights, Tensor[] affine, Tensor? keep, "
      "Tensor out, Tensor saved, Tensor moments, Tensor stats, int[] plan, bool weights_wanted) -> Tensor[]");
}
TORCH_LIBRARY_IMPL(nas_moreau, CPU, library) {
  library.impl("mixed_cell", &mixed_cell);
  library.impl("mixed_cell_backward", &mixed_cell_backward);
}

}  // namespace nas_moreau
