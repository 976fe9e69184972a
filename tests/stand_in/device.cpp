// CUDA devices for a torch that has none. Their memory is the CPU's and their kernels are the CPU's, but their tensors
// say "cuda:0", and what may not meet on a GPU does not meet here: tensors of the CPU, or of another device, are refused.
// They tell where the CPU would wait for them.
//
// torch's own kernels for CUDA are not in such a build, so that this one's fallback gets every operation that is left
// once torch has taken it apart: it hands the CPU's kernel tensors on the same memory.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/histc.h>
#include <ATen/ops/mm.h>
#include <ATen/SDPBackend.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

using namespace c10;
using at::Tensor;

static const Device CPU(DeviceType::CPU);
static constexpr int MOST_DEVICES = 8;

static int devices = 1;  // that there are
static thread_local DeviceIndex current = 0;  // as on a GPU, of each thread by itself, and at first the first

static Device here() { return Device(DeviceType::CUDA, current); }

// What is made until this goes lies on that device; of no index, where it would anyway.
struct On {
  explicit On(DeviceIndex index) {
    TORCH_CHECK(index < devices, "CUDA error: invalid device ordinal");
    if (index >= 0) current = index;
  }
  explicit On(const Tensor& x) : On(x.device().index()) {}
  explicit On(std::optional<Device> device) : On(device ? device->index() : -1) {}
  On(const On&) = delete;
  ~On() { current = before_; }

 private:
  DeviceIndex before_ = current;
};

// ---- what is told ------------------------------------------------------------------------------------------------

static void (*told)(const char*) = nullptr;

// The CPU would wait here until the device has done all that it was asked for.
static void wait_for(const std::string& what) {
  if (told != nullptr) told(what.c_str());
}

// ---- memory --------------------------------------------------------------------------------------------------------

struct Bytes {
  std::atomic<int64_t> held{0}, most{0}, room{0};  // room: that there are at all
};
static std::array<Bytes, MOST_DEVICES> bytes_of;

struct Block {
  DataPtr data;
  int64_t bytes;
  DeviceIndex device;
};

static void release(void* block) {
  auto* const found = static_cast<Block*>(block);
  bytes_of[found->device].held -= found->bytes;
  delete found;
}

struct Memory final : public Allocator {
  DataPtr allocate(size_t bytes) override {
    auto& [held, most, room] = bytes_of[current];
    TORCH_CHECK_WITH(OutOfMemoryError, held + static_cast<int64_t>(bytes) <= room, "CUDA out of memory. Tried to allocate ",
                     bytes, " bytes where ", room - held, " of ", room, " are free.");
    auto* block = new Block{GetCPUAllocator()->allocate(bytes), static_cast<int64_t>(bytes), current};
    const int64_t now = held += block->bytes;
    int64_t before = most;
    while (before < now && !most.compare_exchange_weak(before, now)) {
    }
    return DataPtr(block->data.get(), block, &release, here());
  }
  DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
static auto& memory = *new Memory;  // never taken down: tensors of Python's last modules may outlive what is

// The CPU's memory from which a GPU copies while the CPU goes on.
struct Pinned final : public Allocator {
  DataPtr allocate(size_t bytes) override {
    DataPtr found = GetCPUAllocator()->allocate(bytes);
    void* const data = found.get();
    auto* const held = new DataPtr(std::move(found));
    const std::lock_guard<std::mutex> lock(mutex_);
    if (data != nullptr) known_.insert(data);
    return DataPtr(data, held, &Pinned::forget, CPU);
  }
  DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
  static bool has(const void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return known_.count(data) > 0;
  }

 private:
  static void forget(void* held) {
    const std::lock_guard<std::mutex> lock(mutex_);
    known_.erase(static_cast<DataPtr*>(held)->get());
    delete static_cast<DataPtr*>(held);
  }
  inline static auto& mutex_ = *new std::mutex;
  inline static auto& known_ = *new std::set<const void*>;
};
static auto& pinned = *new Pinned;

// ---- the devices: each with one stream, whose work has always ended ------------------------------------------------

// Hidden by CUDA_VISIBLE_DEVICES as GPUs would be: all but as many as it names.
static DeviceIndex seen() {
  const char* which = std::getenv("CUDA_VISIBLE_DEVICES");
  if (which == nullptr) return devices;
  if (*which == '\0') return 0;
  return std::min<int>(devices, 1 + std::count(which, which + std::strlen(which), ','));
}

struct Guard final : public impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return here(); }
  void setDevice(Device to) const override {
    TORCH_CHECK(to.index() < devices, "CUDA error: invalid device ordinal");
    uncheckedSetDevice(to);
  }
  void uncheckedSetDevice(Device to) const noexcept override {
    if (to.index() >= 0) current = to.index();
  }
  Device exchangeDevice(Device to) const override {
    const Device before = here();
    setDevice(to);
    return before;
  }
  DeviceIndex deviceCount() const noexcept override { return seen(); }
  Stream getStream(Device device) const noexcept override {
    return Stream(Stream::DEFAULT, device.has_index() ? device : here());
  }
  Stream getNewStream(Device device, int) const override { return getStream(device); }
  Stream exchangeStream(Stream stream) const noexcept override { return stream; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
static auto& guard = *new Guard;

// What random numbers of a device are drawn by, where nothing is said: a generator of its own.
static auto& draws = *new std::array<at::Generator, MOST_DEVICES>;

namespace at {
struct CUDAHooks final : public CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return seen() > 0; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex deviceCount() const override { return seen(); }
  int getNumGPUs() const override { return seen(); }
  bool isPinnedPtr(const void* data) const override { return Pinned::has(data); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  Allocator* getCUDADeviceAllocator() const override { return &memory; }
  Device getDeviceFromPtr(void*) const override { return here(); }
  const Generator& getDefaultGenerator(DeviceIndex index) const override { return draws[index < 0 ? current : index]; }
  Generator getNewGenerator(DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  void deviceSynchronize(DeviceIndex) const override {}
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

// ---- tensors -------------------------------------------------------------------------------------------------------

static bool is_here(const Tensor& x) { return x.defined() && x.is_cuda(); }

// A tensor of a storage, as another one lies in it.
static Tensor lying_in(Storage storage, DispatchKeySet keys, const Tensor& x) {
  auto made = at::detail::make_tensor<TensorImpl>(std::move(storage), keys, x.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(x.sizes(), x.strides());
  made.unsafeGetTensorImpl()->set_storage_offset(x.storage_offset());
  return made;
}

// A tensor of the CPU on the memory of one from here. Its storage can grow, as that of an output may.
static Tensor on_cpu(const Tensor& x) {
  if (!is_here(x)) return x;
  Storage storage(Storage::use_byte_size_t(), x.storage().nbytes(), DataPtr(x.storage().mutable_data(), CPU),
                  GetCPUAllocator(), /*resizable=*/true);
  auto made = lying_in(std::move(storage), DispatchKeySet(DispatchKey::CPU), x);
  made.unsafeGetTensorImpl()->_set_conj(x.is_conj());
  made.unsafeGetTensorImpl()->_set_neg(x.is_neg());
  return made;
}

static Tensor empty_strided_here(IntArrayRef size, IntArrayRef stride, ScalarType dtype) {
  return at::detail::empty_strided_generic(size, stride, &memory, DispatchKeySet(DispatchKey::CUDA), dtype);
}

// On the device that is current.
static Tensor from_cpu(const Tensor& x) {
  Tensor made = empty_strided_here(x.sizes(), x.strides(), x.scalar_type());
  on_cpu(made).copy_(x);
  return made;
}

// A view of a tensor from here, as the CPU's view of the same tensor lies.
static Tensor view_like(const Tensor& x, const Tensor& cpu) {
  auto made = at::detail::make_tensor<TensorImpl>(TensorImpl::VIEW, Storage(x.storage()), x.key_set(), x.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides());
  made.unsafeGetTensorImpl()->set_storage_offset(cpu.storage_offset());
  return made;
}

static void resize_storage(const Tensor& x, size_t bytes) {
  const On on(x);
  auto& storage = const_cast<Storage&>(x.storage());
  DataPtr fresh = memory.allocate(bytes);
  const size_t kept = std::min(bytes, storage.nbytes());
  if (storage.data() != nullptr && kept > 0) std::memcpy(fresh.get(), storage.data(), kept);
  storage.set_data_ptr_noswap(std::move(fresh));
  storage.set_nbytes(bytes);
}

static void grow(const Tensor& x, size_t bytes) {
  if (bytes > x.storage().nbytes()) resize_storage(x, bytes);
}

// ---- every operation but those below: the CPU's kernel -------------------------------------------------------------

class Twins {  // tensors from here, and those of the CPU on the same memory
 public:
  Tensor of(const Tensor& x, bool in_brackets = false) {
    if (!is_here(x)) {
      if (x.defined()) (in_brackets ? indices_ : strangers_).push_back(x);
      first_is_here_ = first_is_here_ && !here_.empty();
      return x;
    }
    here_.push_back(x);
    cpu_.push_back(on_cpu(x));
    return cpu_.back();
  }

  // What of the CPU may be among tensors of a GPU: a single number, and what stands in the brackets of a tensor from here.
  // Of another device nothing may.
  void check(const std::string& name) const {
    for (const Tensor& x : here_) refuse(name, x, x.device() == here_.front().device());
    for (const Tensor& x : strangers_) refuse(name, x, here_.empty() || x.dim() == 0);
    for (const Tensor& x : indices_) {
      refuse(name, x, first_is_here_);
      wait_for("a copy to the device");
    }
  }

  // Where they are; -1 of none.
  DeviceIndex index() const { return here_.empty() ? -1 : here_.front().device().index(); }

  // Outputs that the kernel has given another size.
  void take_sizes() const {
    for (size_t i = 0; i < here_.size(); ++i) {
      const Tensor &x = here_[i], &cpu = cpu_[i];
      if (x.sizes() == cpu.sizes() && x.strides() == cpu.strides()) continue;
      grow(x, cpu.storage().nbytes());
      if (cpu.storage().data() != nullptr && cpu.storage().data() != x.storage().data())
        std::memcpy(x.storage().mutable_data(), cpu.storage().data(), cpu.storage().nbytes());
      x.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides());
    }
  }

  Tensor back(const Tensor& x) const {
    if (!x.defined() || is_here(x)) return x;
    for (size_t i = 0; i < cpu_.size(); ++i)
      if (x.is_same(cpu_[i])) return here_[i];
    for (size_t i = 0; i < cpu_.size(); ++i)
      if (x.storage().data() != nullptr && x.storage().data() == cpu_[i].storage().data())
        return lying_in(Storage(here_[i].storage()), DispatchKeySet(DispatchKey::CUDA), x);
    return from_cpu(x);
  }

 private:
  void refuse(const std::string& name, const Tensor& x, bool allowed) const {
    TORCH_CHECK(allowed, "Expected all tensors to be on the same device: ", name, " got one of ", x.device(), ", of size ",
                x.sizes(), ", among those of cuda:", index());
  }

  std::vector<Tensor> here_, cpu_, strangers_, indices_;
  bool first_is_here_ = true;
};

// Those whose result's size, or number, a GPU has to tell before the CPU can go on.
static bool is_awaited(const std::string& name) {
  static const auto& names = *new std::set<std::string>{
      "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::unique_dim", "aten::bincount",
      "aten::unique_consecutive", "aten::repeat_interleave", "aten::multinomial", "aten::is_nonzero"};
  return names.count(name) > 0;
}

// Puts another tensor in the place of each that a value holds, by itself or in a list.
template <typename Other>
static void exchange(IValue& value, const Other& other) {
  if (value.isTensor()) {
    value = other(value.toTensor());
  } else if (value.isTensorList()) {
    List<Tensor> list;
    for (const Tensor& x : value.toTensorVector()) list.push_back(other(x));
    value = list;
  }
}

static void fallback(const OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto first = stack->size() - schema.arguments().size();
  Twins twins;
  DeviceIndex asked = -1;
  std::vector<size_t> without_generator;
  for (size_t i = first; i < stack->size(); ++i) {
    IValue& value = (*stack)[i];
    if (value.isOptionalTensorList()) {
      List<std::optional<Tensor>> list;
      for (const auto& x : value.toOptionalTensorVector())
        list.push_back(x ? std::optional<Tensor>(twins.of(*x, true)) : std::nullopt);
      value = list;
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      asked = value.toDevice().index();
      value = CPU;
    } else if (value.isNone() && schema.arguments()[i - first].name() == "generator") {
      without_generator.push_back(i);
    } else {
      exchange(value, [&](const Tensor& x) { return twins.of(x); });
    }
  }
  twins.check(schema.name());
  const On on(asked >= 0 ? asked : twins.index());
  for (size_t i : without_generator) (*stack)[i] = draws[current];
  if (is_awaited(schema.name())) wait_for(schema.name());
  op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  twins.take_sizes();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i)
    exchange((*stack)[i], [&](const Tensor& x) { return twins.back(x); });
}

// ---- what makes tensors, looks at their memory in another way, or leaves the device --------------------------------

static Tensor empty(SymIntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>,
                    std::optional<Device> device, std::optional<bool>, std::optional<MemoryFormat> format) {
  const On on(device);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, DispatchKeySet(DispatchKey::CUDA),
                                   dtype_or_default(dtype), format);
}

static Tensor empty_strided(SymIntArrayRef size, SymIntArrayRef stride, std::optional<ScalarType> dtype,
                            std::optional<Layout>, std::optional<Device> device, std::optional<bool>) {
  const On on(device);
  return empty_strided_here(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), dtype_or_default(dtype));
}

static Tensor as_strided(const Tensor& x, SymIntArrayRef size, SymIntArrayRef stride, std::optional<SymInt> offset) {
  return view_like(x, on_cpu(x).as_strided_symint(size, stride, offset));
}

static Tensor view(const Tensor& x, SymIntArrayRef size) { return view_like(x, on_cpu(x).view_symint(size)); }

static Tensor reshape_alias(const Tensor& x, SymIntArrayRef size, SymIntArrayRef stride) {
  return view_like(x, on_cpu(x).as_strided_symint(size, stride, x.storage_offset()));
}

static Tensor unfold(const Tensor& x, int64_t dimension, int64_t size, int64_t step) {
  return view_like(x, on_cpu(x).unfold(dimension, size, step));
}

static Tensor& copy_(Tensor& to, const Tensor& from, bool non_blocking) {
  if (!non_blocking && is_here(to) != is_here(from)) wait_for(is_here(to) ? "a copy to the device" : "a copy to the CPU");
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

static Scalar number(const Tensor& x) {
  wait_for("a number");
  return on_cpu(x).item();
}

static const Tensor& resize_(const Tensor& x, SymIntArrayRef size, std::optional<MemoryFormat>) {
  const auto asked = C10_AS_INTARRAYREF_SLOW(size);
  grow(x, (multiply_integers(asked) + x.storage_offset()) * x.element_size());
  x.unsafeGetTensorImpl()->set_sizes_contiguous(asked);
  return x;
}

static Tensor& set_at(Tensor& x, Storage storage, SymInt offset, SymIntArrayRef size, SymIntArrayRef stride) {
  auto* impl = x.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset.expect_int());
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return x;
}

static Tensor& set_storage(Tensor& x, Storage storage) {
  const auto size = static_cast<int64_t>(storage.nbytes() / x.element_size());
  return set_at(x, std::move(storage), 0, SymInt(size), SymInt(1));
}

static Tensor& set_tensor(Tensor& x, const Tensor& y) {
  return set_at(x, y.storage(), y.storage_offset(), y.sym_sizes(), y.sym_strides());
}

static bool is_pinned(const Tensor&, std::optional<Device>) { return false; }

// Attention: a GPU's two fused kernels are the CPU's one. What that one cannot do is left to torch's own operations.
static int64_t attention_by(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                            double dropout, bool, std::optional<double>, bool grouped) {
  if (dropout > 0 || q.size(-1) != v.size(-1)) return static_cast<int64_t>(at::SDPBackend::math);
  if (!mask && q.scalar_type() != ScalarType::Float) return static_cast<int64_t>(at::SDPBackend::flash_attention);
  return static_cast<int64_t>(grouped ? at::SDPBackend::math : at::SDPBackend::efficient_attention);
}

// On the device that is current.
static Tensor nothing() { return empty_strided_here({0}, {1}, ScalarType::Long); }

static std::tuple<Tensor, Tensor, Tensor, Tensor> efficient(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, bool, double, bool causal,
    std::optional<double> scale) {
  const On on(q);
  auto [out, sums] = at::_scaled_dot_product_flash_attention_for_cpu(
      on_cpu(q), on_cpu(k), on_cpu(v), 0.0, causal, mask ? std::optional<Tensor>(on_cpu(*mask)) : std::nullopt, scale);
  return {from_cpu(out), from_cpu(sums), nothing(), nothing()};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_backward(
    const Tensor& gradient, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask, const Tensor& out,
    const Tensor& sums, const Tensor&, const Tensor&, double, std::array<bool, 4>, bool causal,
    std::optional<double> scale) {
  const On on(q);
  auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      on_cpu(gradient), on_cpu(q), on_cpu(k), on_cpu(v), on_cpu(out), on_cpu(sums), 0.0, causal,
      mask.defined() ? std::optional<Tensor>(on_cpu(mask)) : std::nullopt, scale);
  return {from_cpu(dq), from_cpu(dk), from_cpu(dv), Tensor()};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor, SymInt, SymInt, Tensor, Tensor, Tensor> flash(
    const Tensor& q, const Tensor& k, const Tensor& v, double, bool causal, bool, std::optional<double> scale) {
  const On on(q);
  auto [out, sums] = at::_scaled_dot_product_flash_attention_for_cpu(on_cpu(q), on_cpu(k), on_cpu(v), 0.0, causal,
                                                                     std::nullopt, scale);
  return {from_cpu(out), from_cpu(sums), nothing(), nothing(), q.size(2), k.size(2), nothing(), nothing(), nothing()};
}

static std::tuple<Tensor, Tensor, Tensor> flash_backward(
    const Tensor& gradient, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& sums,
    const Tensor&, const Tensor&, SymInt, SymInt, double, bool causal, const Tensor&, const Tensor&,
    std::optional<double> scale) {
  const On on(q);
  auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      on_cpu(gradient), on_cpu(q), on_cpu(k), on_cpu(v), on_cpu(out), on_cpu(sums), 0.0, causal, std::nullopt, scale);
  return {from_cpu(dq), from_cpu(dk), from_cpu(dv)};
}

// Products of bfloat16 matrices in float32, which CUDA has and the CPU has not.
static Tensor mm_in(const Tensor& a, const Tensor& b, ScalarType dtype) { return at::mm(a.to(dtype), b.to(dtype)); }

static Tensor& mm_in_out(const Tensor& a, const Tensor& b, ScalarType dtype, Tensor& out) {
  return at::mm_out(out, a.to(dtype), b.to(dtype));
}

static Tensor addmm_in(const Tensor& x, const Tensor& a, const Tensor& b, ScalarType dtype, const Scalar& beta,
                       const Scalar& alpha) {
  return at::addmm(x.to(dtype), a.to(dtype), b.to(dtype), beta, alpha);
}

static Tensor& addmm_in_out(const Tensor& x, const Tensor& a, const Tensor& b, ScalarType dtype, const Scalar& beta,
                            const Scalar& alpha, Tensor& out) {
  return at::addmm_out(out, x.to(dtype), a.to(dtype), b.to(dtype), beta, alpha);
}

// Of whole numbers too, as mixtures of experts count their tokens.
static Tensor histc(const Tensor& x, int64_t bins, const Scalar& least, const Scalar& greatest) {
  const On on(x);
  return from_cpu(at::histc(on_cpu(x).to(ScalarType::Float), bins, least, greatest).to(x.scalar_type()));
}

// The operators, for as long as the process is.
static torch::Library& library(const char* name, std::optional<DispatchKey> key) {
  const auto kind = key ? torch::Library::IMPL : torch::Library::DEF;
  return *new torch::Library(kind, name, key, __FILE__, __LINE__);
}

static void register_operators() {
  const auto by_cpu = [] { return torch::CppFunction::makeFromBoxedFunction<&fallback>(); };
  library("_", DispatchKey::CUDA).fallback(by_cpu());
  auto& m = library("aten", DispatchKey::CUDA);
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("unfold", &unfold);
  m.impl("copy_", &copy_);
  m.impl("_local_scalar_dense", &number);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_at);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("is_pinned", &is_pinned);
  m.impl("histc", &histc);
  m.impl("_scaled_dot_product_efficient_attention", &efficient);
  m.impl("_scaled_dot_product_efficient_attention_backward", &efficient_backward);
  m.impl("_scaled_dot_product_flash_attention", &flash);
  m.impl("_scaled_dot_product_flash_attention_backward", &flash_backward);
  m.impl("mm.dtype", &mm_in);
  m.impl("mm.dtype_out", &mm_in_out);
  m.impl("addmm.dtype", &addmm_in);
  m.impl("addmm.dtype_out", &addmm_in_out);
  // bitsandbytes' kernels for the CPU, too: those that it has for any device take many times as long.
  auto& quantised = library("bitsandbytes", DispatchKey::CUDA);
  for (const char* name :
       {"quantize_blockwise", "dequantize_blockwise", "quantize_4bit", "dequantize_4bit", "int8_linear_matmul"})
    quantised.impl(name, by_cpu());
  // torch.ops.stand_in.on_cpu(x): for what has a kernel of its own on a GPU, to compute in place.
  auto& own = library("stand_in", std::nullopt);
  own.def("on_cpu(Tensor x) -> Tensor");
  own.def("draw_by(Generator? generator, int device) -> ()",
          [](std::optional<at::Generator> generator, int64_t device) { draws[device] = *generator; });
  own.def("resize_storage(Tensor x, int bytes) -> ()");
  auto& here = library("stand_in", DispatchKey::CUDA);
  here.impl("on_cpu", &on_cpu);
  here.impl("resize_storage", [](const Tensor& x, int64_t bytes) { resize_storage(x, bytes); });
}

// ---- what DistributedDataParallel asks of a device -----------------------------------------------------------------

struct Timer final : public c10d::Timer {
  explicit Timer(Device) {}
  std::optional<int64_t> measureDifference(Event, Event) override { return std::nullopt; }
};

// ---- for Python ----------------------------------------------------------------------------------------------------

extern "C" {
void install(int count) {
  devices = count;
  for (auto& generator : draws) generator = at::detail::createCPUGenerator();
  register_operators();
  impl::device_guard_impl_registry[static_cast<size_t>(DeviceType::CUDA)].store(&guard);
  SetAllocator(DeviceType::CUDA, &memory);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&attention_by);
  c10d::TimerRegistry()->Register(DeviceType::CUDA, [](Device device) { return std::make_unique<Timer>(device); });
}

int seen_devices() { return seen(); }
int current_device() { return current; }
void set_device(int index) { current = index; }
int64_t held_bytes(int device) { return bytes_of[device].held; }
int64_t most_bytes(int device) { return bytes_of[device].most; }
void forget_most(int device) { bytes_of[device].most = bytes_of[device].held.load(); }
void set_room(int64_t bytes) {
  for (auto& of : bytes_of) of.room = bytes;
}
void tell(void (*callback)(const char*)) { told = callback; }
}
