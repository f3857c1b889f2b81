#include "binding/execution.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <set>
#include <stdexcept>
#include <thread>

#include "cpu/worker.h"
#if defined(BERTADAM_WITH_CUDA)
#include "cuda/tuning.h"
#endif

namespace bertadam::binding {
namespace {

// Fewer elements than this are not worth a second thread (about 5 us to start a parallel region).
constexpr int64_t kCpuElementsPerWorker = 32 * 1024;

std::atomic<int>& chosen_isa() {
  static std::atomic<int> index = [] {
    int best = 0;
    for (int i = 0; i < cpu::n_isa_levels(); ++i) {
      if (cpu::isa_level(i).supported) best = i;
    }
    return best;
  }();
  return index;
}

size_t padded(size_t bytes) { return (bytes + 127) / 128 * 128; }

#if defined(BERTADAM_WITH_CUDA)
c10::Stream current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(device);
}
#endif

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

}  // namespace

Execution::Execution(std::string where, at::Device device, std::vector<int64_t> n_elements, std::vector<uint32_t> group,
                     size_t n_groups, at::Tensor n_skipped)
    : where_(std::move(where)),
      device_(device),
      n_elements_(std::move(n_elements)),
      group_(std::move(group)),
      n_groups_(n_groups),
      groups_(n_groups),
      rows_(n_elements_.size()),
      grads_(n_elements_.size()),
      n_skipped_(std::move(n_skipped)) {
  const auto options = at::TensorOptions().device(device_);
  const auto n = static_cast<int64_t>(n_elements_.size());
  norms_ = at::full({n}, kNaN, options.dtype(at::kDouble));
  total_norm_ = at::full({}, kNaN, options.dtype(at::kDouble));
  clip_coefficients_ = at::full({n}, kNaN, options.dtype(at::kFloat));
}

void Execution::configure(ExecutionSettings settings) {
  TORCH_CHECK(settings.group_needs_norm.size() == n_groups_, "one flag per group");
  if (settings == settings_) return;
  settings_ = std::move(settings);
  list_fits_ = false;
}

void Execution::prepare() {
#if defined(BERTADAM_WITH_CUDA)
  if (device_.is_cuda() && cuda::is_capturing(current_stream(device_).native_handle())) {
    throw std::runtime_error(where_ +
                             ": step() was called while a CUDA graph is being captured, which is not supported yet; "
                             "capture forward and backward, and call step() outside of the graph");
  }
#else
  if (device_.is_cuda()) {
    throw std::runtime_error(where_ + ": the parameters are on " + device_.str() +
                             ", but this build of bertadam_cuda has no CUDA kernels; rebuild it where nvcc is found "
                             "(python -m bertadam_cuda tells more)");
  }
#endif
  bool null_step = true;
  for (size_t i = 0; i < n_groups_; ++i) {
    groups_[i].needs_norm = settings_.group_needs_norm[i];
    null_step = null_step && groups_[i].lr == 0.0;
  }
  if (device_.is_cuda()) see_types();
  if (!list_fits_ || null_step != null_step_) make_list(null_step);
}

// How much a GPU can keep on chip depends on the types.
void Execution::see_types() {
  const uint32_t before = seen_types_;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (grads_[i] != nullptr) seen_types_ |= 1u << rows_[i].types;
  }
  if (seen_types_ != before) list_fits_ = false;
}

#if defined(BERTADAM_WITH_CUDA)
uint32_t Execution::types() const {
  if (seen_types_ == 0 || (seen_types_ & (seen_types_ - 1)) != 0) return cuda::kAnyTypes;
  uint32_t code = 0;
  while ((seen_types_ >> code & 1u) == 0) ++code;
  return code;
}
#endif

void Execution::make_list(bool null_step) {
  std::vector<bool> needs_norm;
  for (const uint32_t group : group_) needs_norm.push_back(settings_.group_needs_norm[group]);
  const bool any_norm = std::find(needs_norm.begin(), needs_norm.end(), true) != needs_norm.end();
  plan_ =
      make_plan(n_elements_, group_, needs_norm, plan_options((settings_.clip_by_total_norm && any_norm) || null_step));
  TORCH_CHECK(plan_.items.size() < (size_t{1} << 31), where_, ": the parameters make ", plan_.items.size(),
              " work items, at most 2^31 are supported");
  items_ = upload(plan_.items.data(), plan_.items.size() * sizeof(WorkItem));
  tensors_ = upload(plan_.tensors.data(), plan_.tensors.size() * sizeof(PlanTensor));
  large_ = upload(plan_.large.data(), plan_.large.size() * sizeof(uint32_t));
  norms_ = at::full_like(norms_, kNaN);  // not in place: the user may hold the last step's
  scratch_.clear();
  null_step_ = null_step;
  list_fits_ = true;
}

PlanOptions Execution::plan_options(bool wait_for_all) const {
#if defined(BERTADAM_WITH_CUDA)
  if (device_.is_cuda()) {
    cuda::RingShape shape{};
    const int error = cuda::ring_shape(device_.index(), types(), &shape);
    TORCH_CHECK(error == 0, where_, ": CUDA error while planning: ", cuda::error_string(error));
    const int64_t kept_slots = std::max<int64_t>(1, int64_t{shape.n_slots} - cuda::kSlotsInPassage);
    return {cuda::kPartElements, cuda::kItemsPerDraw, wait_for_all, PlanOrder::kRetaining,
            retained_draws_ >= 0 ? retained_draws_ : shape.blocks * kept_slots};
  }
#endif
  return {cpu::kPartElements, 1, wait_for_all, PlanOrder::kInTurn};
}

void Execution::set_retained_draws(int64_t n) {
  retained_draws_ = n;
  list_fits_ = false;
}

at::Tensor Execution::upload(const void* data, size_t bytes) const {
  const auto n = static_cast<int64_t>(bytes);
  const auto options = at::TensorOptions().dtype(at::kByte);
  return at::empty({n}, options.device(device_)).copy_(at::from_blob(const_cast<void*>(data), {n}, options));
}

Execution::ScratchLayout Execution::scratch_layout() const {
  const size_t n_nodes = static_cast<size_t>(plan_.n_nodes);
  const size_t node_bytes = sizeof(double) * (device_.is_cuda() ? 2 : 1);
  ScratchLayout offsets{};
  offsets.nodes = padded(sizeof(Counters));
  offsets.arrivals = offsets.nodes + padded(n_nodes * node_bytes);
  offsets.coefficients = offsets.arrivals + padded(n_nodes * sizeof(uint32_t));
  offsets.postponed = offsets.coefficients + padded(std::max(n_elements_.size(), n_groups_) * sizeof(uint64_t));
  offsets.end = offsets.postponed + padded(n_draws() * sizeof(uint64_t));
  return offsets;
}

Execution::Scratch Execution::make_scratch() const {
  const ScratchLayout offsets = scratch_layout();
  Scratch scratch;
  scratch.memory = at::zeros({static_cast<int64_t>(offsets.end)}, at::TensorOptions().dtype(at::kByte).device(device_));
  auto* const base = static_cast<unsigned char*>(scratch.memory.mutable_data_ptr());
  scratch.workspace.counters = reinterpret_cast<Counters*>(base);
  scratch.workspace.nodes = reinterpret_cast<double*>(base + offsets.nodes);
  scratch.workspace.arrivals = reinterpret_cast<uint32_t*>(base + offsets.arrivals);
  scratch.workspace.coefficients = reinterpret_cast<uint64_t*>(base + offsets.coefficients);
  scratch.workspace.postponed = reinterpret_cast<uint64_t*>(base + offsets.postponed);
  return scratch;
}

size_t Execution::n_draws() const { return plan_.items.size() / static_cast<size_t>(plan_.items_per_draw); }

Execution::Scratch& Execution::scratch_of(void* stream) {
  auto found = scratch_.find(stream);
  if (found == scratch_.end()) found = scratch_.emplace(stream, make_scratch()).first;
  return found->second;
}

StepArgs Execution::step_args(const Workspace& workspace) const {
  StepArgs args{};
  args.items = static_cast<const WorkItem*>(items_.const_data_ptr());
  args.tensors = static_cast<const PlanTensor*>(tensors_.const_data_ptr());
  args.large = static_cast<const uint32_t*>(large_.const_data_ptr());
  args.n_large = static_cast<uint32_t>(plan_.large.size());
  args.n_draws = static_cast<uint32_t>(n_draws());
  args.n_tensors = static_cast<uint32_t>(n_elements_.size());
  args.n_groups = static_cast<uint32_t>(n_groups_);
  args.total_tree = plan_.n_nodes - tree_nodes(static_cast<int64_t>(n_elements_.size()));
  args.clip_by_total_norm = settings_.clip_by_total_norm;
  args.skip_nonfinite = settings_.skip_nonfinite;
  args.has_norms = plan_.has_norms;
  args.wait_for_all = plan_.waits_for_all;
  args.skip_if_all_zero = null_step_;
  args.rounding_seed = rounding_seed;
  args.workspace = workspace;
  args.statistics = {norms_.mutable_data_ptr<double>(), total_norm_.mutable_data_ptr<double>(),
                     clip_coefficients_.mutable_data_ptr<float>(), n_skipped_.mutable_data_ptr<int64_t>()};
  return args;
}

void Execution::run() {
  if (plan_.items.empty()) return;
  if (device_.is_cuda()) {
    run_on_cuda();
  } else {
    run_on_cpu();
  }
}

void Execution::run_on_cpu() {
  StepArgs args = step_args(scratch_of(nullptr).workspace);
  args.groups = groups_.data();
  args.rows = rows_.data();
  args.grads = grads_.data();
  int64_t n_elements = 0;
  for (const int64_t n : n_elements_) n_elements += n;
  const int64_t useful = std::max<int64_t>(1, n_elements / kCpuElementsPerWorker);
  args.n_workers = static_cast<uint32_t>(workers > 0 ? workers : std::min<int64_t>(useful, at::get_num_threads()));
  const cpu::Worker worker = cpu::worker(RuleId::kAdam, chosen_isa());
  std::vector<std::thread::id> ran_on(args.n_workers);
  at::parallel_for(0, args.n_workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ran_on[i] = std::this_thread::get_id();
      worker(args);
    }
  });
  n_threads = std::set<std::thread::id>(ran_on.begin(), ran_on.end()).size();
}

void Execution::run_on_cuda() {
#if defined(BERTADAM_WITH_CUDA)
  const c10::Stream stream = current_stream(device_);
  Scratch& scratch = scratch_of(stream.native_handle());
  if (!scratch.launcher) {
    scratch.launcher = std::make_unique<cuda::Launcher>(device_.index());
    // Freed memory is handed out again once this stream has passed, too.
    for (const at::Tensor& tensor :
         {scratch.memory, items_, tensors_, large_, norms_, total_norm_, clip_coefficients_}) {
      tensor.record_stream(stream);
    }
  }
  const int error = scratch.launcher->launch_adam(step_args(scratch.workspace), {groups_, rows_, grads_}, types(),
                                                  stream.native_handle(), workers);
  TORCH_CHECK(error == 0, where_, ": the step could not be launched on ", device_, ": ", cuda::error_string(error));
#endif
}

std::optional<at::Tensor> Execution::grad_norms() const {
  for (const bool norm : settings_.group_needs_norm) {
    if (norm) return norms_;
  }
  return std::nullopt;
}

std::optional<at::Tensor> Execution::total_norm() const {
  return settings_.clip_by_total_norm && grad_norms() ? std::optional(total_norm_) : std::nullopt;
}

int Execution::n_copies() const {
  int n = 0;
#if defined(BERTADAM_WITH_CUDA)
  for (const auto& [stream, scratch] : scratch_) {
    if (scratch.launcher) n = std::max(n, scratch.launcher->n_copies());
  }
#endif
  return n;
}

std::vector<at::Tensor> Execution::scratch() const {
  std::vector<at::Tensor> memory;
  for (const auto& [stream, scratch] : scratch_) memory.push_back(scratch.memory);
  return memory;
}

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < cpu::n_isa_levels(); ++i) {
    if (cpu::isa_level(i).supported) names.emplace_back(cpu::isa_level(i).name);
  }
  return names;
}

void set_cpu_isa(const std::string& name) {
  for (int i = 0; i < cpu::n_isa_levels(); ++i) {
    if (cpu::isa_level(i).supported && name == cpu::isa_level(i).name) {
      chosen_isa() = i;
      return;
    }
  }
  throw std::invalid_argument("set_cpu_isa: '" + name + "' is not compiled in or not supported by this machine");
}

}  // namespace bertadam::binding
