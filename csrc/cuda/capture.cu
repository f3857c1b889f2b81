// Launches into a graph that is being captured: every table is in the node's arguments, or in memory of its own.
#include <vector>

#include "cuda/kernel_launch.cuh"

namespace bertadam::cuda {

int prepare_capture(int device, RuleId rule, uint32_t types) {
  const DeviceScope scope(device);
  BERTADAM_RETURN_IF_ERROR(scope.error());
  RingShape shape;
  return find_ring_shape(device, kernel_with<SmallArgs>(rule, types), &shape);
}

int capture(StepArgs args, const StepTables& tables, const StepKind& kind, void* stream, CapturedMemory& memory) {
  const DeviceScope scope(memory.device());
  BERTADAM_RETURN_IF_ERROR(scope.error());
  const KernelChoice choice = kernel_with<SmallArgs>(kind.rule, kind.types);
  RingShape shape;
  if (const int error = find_ring_shape(memory.device(), choice, &shape)) return error;

  const unsigned char* on_device = nullptr;
  const size_t rows_size = tables.rows.size() * sizeof(TensorRow);
  if (const int error = memory.add_copy(tables.rows.data(), rows_size, &on_device)) return error;
  args.rows = reinterpret_cast<const TensorRow*>(on_device);
  args.groups = nullptr;
  args.grads = nullptr;
  const StepTable step_table(tables);
  if (step_table.size > kSmallTableBytes) {
    std::vector<unsigned char> on_host(step_table.size);
    step_table.write(on_host.data());
    if (const int error = memory.add_copy(on_host.data(), on_host.size(), &on_device)) return error;
    step_table.point(args, on_device);
  }
  return launch_step<SmallArgs>(choice, shape, args, step_table, blocks_of(shape, args),
                                static_cast<cudaStream_t>(stream));
}

}  // namespace bertadam::cuda
