#include "binding/execution.h"

#include <ATen/Parallel.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
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

#if defined(BERTADAM_WITH_CUDA)
c10::Stream current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(device);
}
#endif

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

}  // namespace

Execution::Execution(std::string where, RuleId rule, at::Device device, std::vector<int64_t> n_elements,
                     std::vector<uint32_t> group, size_t n_groups, at::Tensor n_skipped)
    : where_(std::move(where)),
      rule_(rule),
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
  trust_ratios_ = at::full_like(clip_coefficients_, kNaN);
}

void Execution::configure(ExecutionSettings settings) {
  TORCH_CHECK(settings.group_needs_norm.size() == n_groups_, "one flag per group");
  if (settings == settings_) return;
  settings_ = std::move(settings);
  lists_fit_ = false;
}

bool Execution::prepare() {
#if !defined(BERTADAM_WITH_CUDA)
  if (device_.is_cuda()) {
    throw std::runtime_error(where_ + ": the parameters are on " + device_.str() +
                             ", but this build of bertadam_cuda has no CUDA kernels; rebuild it where nvcc is found "
                             "(python -m bertadam_cuda tells more)");
  }
#endif
  null_step_ = true;
  for (size_t i = 0; i < n_groups_; ++i) {
    groups_[i].needs_norm = settings_.group_needs_norm[i];
    null_step_ = null_step_ && groups_[i].lr == 0.0;
  }
  is_captured_ = is_capturing(device_);
  if (is_captured_ && !is_ready_to_capture()) return false;
  if (device_.is_cuda()) see_types();
  choose_list();
  return true;
}

// How much a GPU can keep on chip depends on the types.
void Execution::see_types() {
  const uint32_t before = seen_types_;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (grads_[i] != nullptr) seen_types_ |= 1u << rows_[i].types;
  }
  if (seen_types_ != before) lists_fit_ = false;
}

#if defined(BERTADAM_WITH_CUDA)
uint32_t Execution::types() const {
  if (seen_types_ == 0 || (seen_types_ & (seen_types_ - 1)) != 0) return cuda::kAnyTypes;
  uint32_t code = 0;
  while ((seen_types_ >> code & 1u) == 0) ++code;
  return code;
}
#endif

void Execution::choose_list() {
  if (!lists_fit_) {
    lists_ = {};
    list_ = nullptr;
    norms_ = at::full_like(norms_, kNaN);  // not in place: the user may hold the last step's
    clip_coefficients_ = at::full_like(clip_coefficients_, kNaN);
    trust_ratios_ = at::full_like(trust_ratios_, kNaN);
    lists_fit_ = true;
  }
  std::unique_ptr<WorkList>& list = lists_[waits_for_all()];
  if (!list) list = make_list(waits_for_all());
  list_ = list.get();
}

bool Execution::waits_for_all() const {
  const bool has_ratio = rule_info(rule_).has_trust_ratio;
  return ((settings_.clip_by_total_norm || has_ratio) && any_norm()) || null_step_ || scaling.finds_inf;
}

std::unique_ptr<WorkList> Execution::make_list(bool wait_for_all) const {
  std::vector<bool> needs_norm;
  for (const uint32_t group : group_) needs_norm.push_back(settings_.group_needs_norm[group]);
  Plan plan = make_plan(n_elements_, group_, needs_norm, plan_options(wait_for_all));
  TORCH_CHECK(plan.items.size() < (size_t{1} << 31), where_, ": the parameters make ", plan.items.size(),
              " work items, at most 2^31 are supported");
#if defined(BERTADAM_WITH_CUDA)
  if (device_.is_cuda() && captured) {
    const int error = cuda::prepare_capture(device_.index(), rule_, types());
    TORCH_CHECK(error == 0, where_, ": CUDA error while planning: ", cuda::error_string(error));
  }
#endif
  return std::make_unique<WorkList>(std::move(plan), device_, std::max(n_elements_.size(), n_groups_));
}

// A group without parameters asks for none.
bool Execution::any_norm() const {
  for (const uint32_t group : group_) {
    if (settings_.group_needs_norm[group]) return true;
  }
  return false;
}

PlanOptions Execution::plan_options(bool wait_for_all) const {
#if defined(BERTADAM_WITH_CUDA)
  if (device_.is_cuda()) {
    cuda::RingShape shape{};
    const int error = cuda::ring_shape(device_.index(), rule_, types(), &shape);
    TORCH_CHECK(error == 0, where_, ": CUDA error while planning: ", cuda::error_string(error));
    return {cuda::kPartElements,
            cuda::kItemsPerDraw,
            wait_for_all,
            PlanOrder::kRetaining,
            retained_draws_ >= 0 ? retained_draws_ : int64_t{shape.blocks} * shape.n_kept,
            rule_info(rule_).has_trust_ratio};
  }
#endif
  return {cpu::kPartElements, 1, wait_for_all, PlanOrder::kInTurn, 0, rule_info(rule_).has_trust_ratio};
}

void Execution::set_retained_draws(int64_t n) {
  retained_draws_ = n;
  lists_fit_ = false;
}

StepArgs Execution::step_args(const Workspace& workspace) const {
  StepArgs args{};
  list_->describe(args);
  args.n_groups = static_cast<uint32_t>(n_groups_);
  args.clip_by_total_norm = settings_.clip_by_total_norm;
  args.skip_nonfinite = settings_.skip_nonfinite;
  args.skip_if_all_zero = null_step_;
  args.rounding_seed = rounding_seed;
  args.scaler = scaling.args();
  args.workspace = workspace;
  args.statistics = {norms_.mutable_data_ptr<double>(), total_norm_.mutable_data_ptr<double>(),
                     clip_coefficients_.mutable_data_ptr<float>(), trust_ratios_.mutable_data_ptr<float>(),
                     n_skipped_.mutable_data_ptr<int64_t>()};
  return args;
}

void Execution::run() {
  if (list_->is_empty()) return;
  if (is_captured_) {
    capture();
  } else if (device_.is_cuda()) {
    run_on_cuda();
  } else {
    run_on_cpu();
  }
}

void Execution::run_on_cpu() {
  StepArgs args = step_args(list_->scratch_of(nullptr).workspace);
  args.groups = groups_.data();
  args.rows = rows_.data();
  args.grads = grads_.data();
  int64_t n_elements = 0;
  for (const int64_t n : n_elements_) n_elements += n;
  const int64_t useful = std::max<int64_t>(1, n_elements / kCpuElementsPerWorker);
  args.n_workers = static_cast<uint32_t>(workers > 0 ? workers : std::min<int64_t>(useful, at::get_num_threads()));
  const cpu::Worker worker = cpu::worker(rule_, chosen_isa());
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
  Scratch& scratch = list_->scratch_of(stream.native_handle());
  if (!scratch.launcher) {
    scratch.launcher = std::make_unique<cuda::Launcher>(device_.index());
    // Freed memory is handed out again once this stream has passed, too.
    std::vector<at::Tensor> used = list_->memory();
    used.insert(used.end(), {scratch.memory, norms_, total_norm_, clip_coefficients_, trust_ratios_});
    for (const at::Tensor& tensor : used) tensor.record_stream(stream);
  }
  const int error = scratch.launcher->launch(step_args(scratch.workspace), {groups_, rows_, grads_}, rule_, types(),
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

std::optional<at::Tensor> Execution::trust_ratios() const {
  return rule_info(rule_).has_trust_ratio ? std::optional(trust_ratios_) : std::nullopt;
}

std::optional<at::Tensor> Execution::total_norm() const {
  return settings_.clip_by_total_norm && grad_norms() ? std::optional(total_norm_) : std::nullopt;
}

int Execution::n_copies() const {
  int n = 0;
#if defined(BERTADAM_WITH_CUDA)
  if (list_ == nullptr) return n;
  for (const auto& [stream, scratch] : list_->scratch()) {
    if (scratch.launcher) n = std::max(n, scratch.launcher->n_copies());
  }
#endif
  return n;
}

std::vector<at::Tensor> Execution::scratch() const {
  std::vector<at::Tensor> memory;
  if (list_ == nullptr) return memory;
  for (const auto& [stream, scratch] : list_->scratch()) memory.push_back(scratch.memory);
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
