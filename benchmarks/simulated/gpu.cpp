// A CUDA device that exists for shapes, types and devices alone, beside a PyTorch that was built without CUDA.
// Without HOOKS: only what lets fake tensors be on it. With HOOKS: PyTorch also believes that there is a GPU with cuDNN, so that
// it chooses its back ends for one and autograd's engine runs. Such a library must be loaded before torch, and a process that
// loaded it must leave by os._exit.
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
struct Simulated final : public impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static constexpr DeviceType kind = DeviceType::CUDA;
  Device exchangeDevice(Device) const override { return Device(kind, 0); }
  Device getDevice() const override { return Device(kind, 0); }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, Device(kind, 0)); }
  Stream getNewStream(Device, int = 0) const override { return Stream(Stream::DEFAULT, Device(kind, 0)); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, Device(kind, 0)); }
  void recordDataPtrOnStream(const DataPtr&, const Stream&) const override {}
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
};
static impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, new Simulated());

#ifdef HOOKS
#include <ATen/detail/CUDAHooksInterface.h>
#include <optional>
struct CUDAHooks final : public at::CUDAHooksInterface {
  CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasCuDNN() const override { return true; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  bool compiledWithCuDNN() const override { return true; }
  bool supportsDilatedConvolutionWithCuDNN() const override { return true; }
  bool supportsDepthwiseConvolutionWithCuDNN() const override { return true; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return true; }
  long versionCuDNN() const override { return 91900; }
  long versionRuntimeCuDNN() const override { return 91900; }
  double batchnormMinEpsilonCuDNN() const override { return 1e-5; }
};
namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)  // PyTorch looks for this name
}
namespace at::accelerator {
__attribute__((visibility("default"))) std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
__attribute__((visibility("default"))) bool isAccelerator(c10::DeviceType d) { return d == c10::DeviceType::CUDA; }
}
#endif
