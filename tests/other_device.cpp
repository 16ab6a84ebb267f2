// A device for tests of code that will run on one: memory of its own, operators computed by the CPU's.
//
// What it is strict about is what a GPU is strict about: operands in two places are an error (a 0-dimensional CPU tensor or an
// index may come along). And it counts every time that the host waits for a value, and its memory.
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kType, 0);
const c10::Stream kStream(c10::Stream::DEFAULT, kDevice);

using Tensor = at::Tensor;
template <typename T>
using Maybe = std::optional<T>;

// ---- what the host has waited for ------------------------------------------------------------------------------

std::mutex mutex;
std::map<std::string, long> waits;       // of all threads: a backward pass has its own
thread_local bool in_operator = false;  // copies within an operator that the CPU computes are none of the caller's

void count_wait(const std::string& what) {
  if (in_operator) return;
  std::lock_guard<std::mutex> guard(mutex);
  waits[what]++;
}

// ---- memory -----------------------------------------------------------------------------------------------------

std::map<void*, size_t> blocks;
size_t allocated = 0, peak = 0;

void release(void* data) {
  if (!data) return;
  {
    std::lock_guard<std::mutex> guard(mutex);
    allocated -= blocks.extract(data).mapped();
  }
  std::free(data);
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    if (data) {
      std::lock_guard<std::mutex> guard(mutex);
      blocks[data] = bytes;
      allocated += bytes;
      peak = std::max(peak, allocated);
    }
    return {data, data, &release, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(kType, &allocator);

Tensor empty(at::IntArrayRef size, Maybe<at::ScalarType> dtype, Maybe<at::Layout>, Maybe<at::Device>, Maybe<bool>,
             Maybe<at::MemoryFormat> format) {
  const c10::DispatchKeySet key(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &allocator, key, at::dtype_or_default(dtype), format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, Maybe<at::ScalarType> dtype, Maybe<at::Layout>,
                     Maybe<at::Device>, Maybe<bool>) {
  const c10::DispatchKeySet key(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &allocator, key, at::dtype_or_default(dtype));
}

// The same memory as a CPU tensor, for a kernel of the CPU.
Tensor on_cpu(const Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
  if (!tensor.numel()) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(const_cast<void*>(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(), options);
}

Tensor to_device(const Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  auto copied = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(kDevice));
  on_cpu(copied).copy_(tensor);
  return copied;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool /*non_blocking*/) {
  if (to.is_cpu() && from.numel()) count_wait("copy to the CPU");
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());  // else as it lies, channels last too
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const Tensor& tensor) {
  count_wait("item");
  return on_cpu(tensor).item();
}

void resize_bytes(const c10::Storage& storage, size_t bytes) {
  auto data = allocator.allocate(bytes);
  if (storage.nbytes()) std::memcpy(data.get(), storage.data(), std::min(bytes, storage.nbytes()));
  storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(data));
  storage.unsafeGetStorageImpl()->set_nbytes(bytes);
}

const Tensor& resize(const Tensor& self, at::IntArrayRef size, Maybe<at::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  const size_t bytes = (impl->numel() + self.storage_offset()) * self.itemsize();
  if (self.storage().nbytes() < bytes) resize_bytes(self.storage(), bytes);
  if (format && *format == at::MemoryFormat::ChannelsLast) impl->empty_tensor_restride(*format);
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset);
  if (stride.size() == size.size()) {
    impl->set_sizes_and_strides(size, stride);
  } else {
    impl->set_sizes_contiguous(size);
  }
  return self;
}

// ---- operators --------------------------------------------------------------------------------------------------

// Every operator that is not named below: checked, then computed by the CPU's.
void by_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string& name = op.schema().operator_name().name;
  bool here = false, elsewhere = false;
  const auto look = [&](const Tensor& tensor) {
    if (!tensor.defined()) return;
    here |= tensor.is_privateuseone();
    elsewhere |= tensor.is_cpu() && tensor.dim() > 0;
  };
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) look(value.toTensor());
    if (value.isTensorList()) {
      for (const Tensor& tensor : value.toTensorVector()) look(tensor);
    }
  }
  TORCH_CHECK(!(here && elsewhere), name, ": Expected all tensors to be on the same device, found one on the CPU");
  static const std::set<std::string> waiting{"aten::nonzero",    "aten::masked_select", "aten::equal", "aten::_unique2",
                                             "aten::unique_dim", "aten::is_nonzero",    // their results have a size, or are none
                                             "aten::_linalg_eigh", "aten::_linalg_svd"};  // and these check theirs
  if (waiting.count(name)) count_wait(name);
  const bool before = std::exchange(in_operator, true);
  try {
    at::native::cpu_fallback(op, stack);
  } catch (...) {
    in_operator = before;
    throw;
  }
  in_operator = before;
}

void check_here(const Tensor& tensor, const char* what) {
  TORCH_CHECK(!tensor.defined() || tensor.is_privateuseone(), what, ": Expected all tensors to be on the same device");
}

Maybe<Tensor> on_cpu(const Maybe<Tensor>& tensor, const char* what) {
  if (!tensor || !tensor->defined()) return std::nullopt;
  check_here(*tensor, what);
  return on_cpu(*tensor);
}

Tensor convolution(const Tensor& input, const Tensor& weight, const Maybe<Tensor>& bias, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
                   int64_t groups) {
  check_here(input, "convolution");
  check_here(weight, "convolution");
  return to_device(at::convolution(on_cpu(input), on_cpu(weight), on_cpu(bias, "convolution"), stride, padding, dilation,
                                   transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                        at::IntArrayRef stride, at::IntArrayRef padding,
                                                        at::IntArrayRef dilation, bool transposed,
                                                        at::IntArrayRef output_padding, int64_t groups,
                                                        std::array<bool, 3> mask) {
  const int64_t bias_size = weight.size(0);
  auto [of_input, of_weight, of_bias] =
      at::convolution_backward(on_cpu(grad), on_cpu(input), on_cpu(weight), at::IntArrayRef(bias_size), stride, padding,
                               dilation, transposed, output_padding, groups, mask);
  return {to_device(of_input), to_device(of_weight), to_device(of_bias)};
}

// Its schema does not say that it writes into the running statistics, so the general way would lose them.
std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor& input, const Maybe<Tensor>& weight, const Maybe<Tensor>& bias,
                                              const Maybe<Tensor>& mean, const Maybe<Tensor>& variance, bool training,
                                              double momentum, double eps) {
  constexpr auto what = "batch norm";
  check_here(input, what);
  auto [out, save_mean, save_std] =
      at::native_batch_norm(on_cpu(input), on_cpu(weight, what), on_cpu(bias, what), on_cpu(mean, what),
                            on_cpu(variance, what), training, momentum, eps);
  return {to_device(out), to_device(save_mean), to_device(save_std)};
}

// ---- registration -----------------------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return kStream; }
  c10::Stream getDefaultStream(c10::Device) const override { return kStream; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return kStream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Device getDeviceFromPtr(void*) const override { return kDevice; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override { resize_bytes(storage, bytes); }
};

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("native_batch_norm", batch_norm);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>()); }

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {  // as on CUDA, for what a re-ID network has
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(exp, fp32)
  KERNEL_PRIVATEUSEONE(log, fp32)
  KERNEL_PRIVATEUSEONE(log_softmax, int, fp32)
  KERNEL_PRIVATEUSEONE(softmax, int, fp32)
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("register_hooks", [] { at::RegisterPrivateUse1HooksInterface(new Hooks()); });
  m.def("take_waits", [] {
    std::lock_guard<std::mutex> guard(mutex);
    return std::exchange(waits, {});
  });
  m.def("take_peak", [] {
    std::lock_guard<std::mutex> guard(mutex);
    return std::exchange(peak, allocated);
  });
}
