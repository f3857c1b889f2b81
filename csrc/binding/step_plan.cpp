#include "binding/step_plan.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <set>
#include <thread>

#include "core/rules/adam.h"

namespace py = pybind11;

namespace bertadam::binding {
namespace {

// 256 KB of each array. With 64 KB, steps on BERT-base's shapes took 3 % longer, with 1 MB the same (2 threads of a
// Xeon, 2026-11).
constexpr int64_t kCpuChunkElements = kMaxLeaves * kLeafElements;
// Fewer elements than this are not worth a second thread (about 5 us to start a parallel region).
constexpr int64_t kCpuElementsPerWorker = 32 * 1024;

py::str interned(const char* text) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text)); }

struct Keys {
  py::str params = interned("params");
  py::str param_names = interned("param_names");
  py::str step = interned("step");
  py::str schedule_start = interned("schedule_start");
  py::str bias_correction_start = interned("bias_correction_start");
  py::str states[Adam::kNumStates] = {interned(Adam::kStateNames[0]), interned(Adam::kStateNames[1])};
};

// Never destroyed: the interpreter may be gone by then.
const Keys& keys() {
  static const Keys* const instance = new Keys;
  return *instance;
}

PyObject* get_item(const py::dict& dict, const py::str& key) {
  PyObject* const value = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

py::list params_of(const py::handle& group) {
  PyObject* const params = get_item(py::reinterpret_borrow<py::dict>(group), keys().params);
  if (params == nullptr || !PyList_Check(params)) throw py::type_error("a parameter group has no list 'params'");
  return py::reinterpret_borrow<py::list>(params);
}

std::string param_name(const py::handle& group, size_t group_index, size_t index) {
  std::string name = "param_groups[" + std::to_string(group_index) + "]['params'][" + std::to_string(index) + "]";
  PyObject* const names = get_item(py::reinterpret_borrow<py::dict>(group), keys().param_names);
  if (names != nullptr && PyList_Check(names) && index < static_cast<size_t>(PyList_GET_SIZE(names))) {
    name = "'" + py::str(py::handle(PyList_GET_ITEM(names, static_cast<Py_ssize_t>(index)))).cast<std::string>() +
           "' (" + name + ")";
  }
  return name;
}

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

}  // namespace

StepPlan::StepPlan(std::string where, py::list param_groups, py::dict state, at::Device device, at::Tensor n_skipped)
    : where_(std::move(where)),
      device_(device),
      state_(std::move(state)),
      n_groups_(param_groups.size()),
      n_skipped_(std::move(n_skipped)) {
  std::vector<Interval> memory;
  for (size_t g = 0; g < n_groups_; ++g) {
    const py::list params = params_of(param_groups[g]);
    group_sizes_.push_back(static_cast<Py_ssize_t>(params.size()));
    for (size_t i = 0; i < params.size(); ++i) {
      const py::object object = params[i];
      all_params_.push_back(object);
      if (!THPVariable_Check(object.ptr()))
        throw py::type_error(where_ + ": " + param_name(param_groups[g], g, i) + " is not a tensor");
      const at::Tensor param = THPVariable_Unpack(object.ptr());
      if (param.device() != device_) continue;
      names_.push_back(param_name(param_groups[g], g, i));
      check_param(param, where_, names_.back());
      const auto* const begin = static_cast<const char*>(param.const_data_ptr());
      if (param.numel() > 0)
        memory.push_back({begin, begin + param.nbytes(), static_cast<uint32_t>(entries_.size()), "the memory"});
      entries_.push_back({object,
                          param,
                          param.sizes().vec(),
                          param.strides().vec(),
                          static_cast<uint32_t>(g),
                          py::dict(),
                          nullptr,
                          {},
                          nullptr,
                          0});
    }
  }
  check_disjoint(memory, where_, names_);
  table_.resize(n_groups_ * sizeof(GroupScalars) + entries_.size() * sizeof(TensorRow));
  group_tables_.resize(2 * n_groups_);
  const auto options = at::TensorOptions().device(device_);
  const auto n = static_cast<int64_t>(entries_.size());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  norms_ = at::full({n}, nan, options.dtype(at::kDouble));
  total_norm_ = at::full({}, nan, options.dtype(at::kDouble));
  clip_coefficients_ = at::full({n}, nan, options.dtype(at::kFloat));
}

void StepPlan::set_group(size_t index, const GroupSettings& s, at::Tensor multipliers,
                         std::optional<at::Tensor> corrections) {
  TORCH_CHECK(index < n_groups_, "group index out of range");
  for (const at::Tensor* table : {&multipliers, corrections ? &*corrections : &multipliers}) {
    TORCH_CHECK(table->device() == device_ && table->scalar_type() == at::kDouble && table->is_contiguous() &&
                    table->numel() > 0,
                "schedule tables are contiguous float64 tensors on the plan's device");
  }
  GroupScalars& group = groups()[index];
  group = GroupScalars{};
  group.lr = s.lr;
  group.max_grad_norm = s.max_grad_norm;
  group.beta1 = split(s.beta1);
  group.one_minus_beta1 = split(1.0 - s.beta1);
  group.beta2 = split(s.beta2);
  group.one_minus_beta2 = split(1.0 - s.beta2);
  group.eps = static_cast<float>(s.eps);
  group.weight_decay = static_cast<float>(s.weight_decay);
  group.grad_sign = s.maximize ? -1.0f : 1.0f;
  group.multipliers = multipliers.const_data_ptr<double>();
  group.n_multipliers = multipliers.numel();
  if (corrections) {
    group.corrections = static_cast<const BiasCorrection*>(corrections->const_data_ptr());
    group.n_corrections = corrections->numel() / 2;
  }
  group_tables_[2 * index] = std::move(multipliers);
  group_tables_[2 * index + 1] = corrections ? *corrections : at::Tensor();
}

void StepPlan::set_lr(size_t index, double lr) {
  TORCH_CHECK(index < n_groups_, "group index out of range");
  groups()[index].lr = lr;
}

void StepPlan::configure(PlanSettings settings) {
  TORCH_CHECK(settings.group_needs_norm.size() == n_groups_, "one flag per group");
  if (settings == settings_) return;
  settings_ = std::move(settings);
  work_is_current_ = false;
}

bool StepPlan::same_structure(const py::list& param_groups) const {
  if (param_groups.size() != n_groups_) return false;
  size_t flat = 0;
  for (size_t g = 0; g < n_groups_; ++g) {
    PyObject* const params = params_of(PyList_GET_ITEM(param_groups.ptr(), static_cast<Py_ssize_t>(g))).ptr();
    const Py_ssize_t n = PyList_GET_SIZE(params);
    if (n != group_sizes_[g]) return false;
    for (Py_ssize_t i = 0; i < n; ++i) {
      if (PyList_GET_ITEM(params, i) != all_params_[flat++].ptr()) return false;
    }
  }
  return true;
}

bool StepPlan::inspect(const py::list& param_groups, const py::dict& state) {
  if (!state.is(state_) || !same_structure(param_groups)) return false;
  converted_grads_.clear();
  converted_grads_.reserve(entries_.size());
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    const at::Tensor& param = entry.param;
    if (param.device() != device_ || param.sizes() != entry.sizes || param.strides() != entry.strides) return false;
    check_param(param, where_, names_[i]);
    entry.grad = nullptr;
    const at::Tensor& grad = param.unsafeGetTensorImpl()->grad();
    if (!grad.defined()) continue;
    check_grad(grad, param, where_, names_[i]);
    entry.grad = &grad;
    if (same_layout(grad, param)) continue;
    const at::NoGradGuard no_grad;  // a gradient may have a graph of its own
    converted_grads_.push_back(at::empty_strided(param.sizes(), param.strides(), param.options()).copy_(grad));
    entry.grad = &converted_grads_.back();
  }
  return true;
}

void StepPlan::find_state(Entry& entry, const std::string& name) {
  PyObject* const found = PyDict_GetItemWithError(state_.ptr(), entry.object.ptr());
  if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
  if (found != nullptr && !PyDict_Check(found))
    throw py::type_error(where_ + ": the state of " + name + " is not a dict");
  const bool exists = found != nullptr && PyDict_GET_SIZE(found) > 0;
  entry.state = exists ? py::reinterpret_borrow<py::dict>(found) : py::dict();
}

void StepPlan::read_state(Entry& entry, size_t index, TensorRow& row) {
  const auto read = [&](const py::str& key, bool required) -> const at::Tensor* {
    PyObject* const value = get_item(entry.state, key);
    if (value == nullptr && !required) return nullptr;
    const auto key_text = [&] { return "'" + key.cast<std::string>() + "'"; };
    if (value == nullptr) {
      throw py::value_error(where_ + ": " + names_[index] + ": its state has no " + key_text() +
                            "; load a complete state, or remove optimizer.state[parameter] to start it anew");
    }
    if (!THPVariable_Check(value)) {
      throw py::type_error(where_ + ": " + names_[index] + ": state " + key_text() + " is a " +
                           Py_TYPE(value)->tp_name + ", expected a tensor; load it with load_state_dict");
    }
    return &THPVariable_Unpack(value);
  };
  entry.written.clear();
  for (int k = 0; k < Adam::kNumStates; ++k) {
    const at::Tensor* const state = read(keys().states[k], true);
    check_state(*state, entry.param, Adam::kStateNames[k], where_, names_[index]);
    row.states[k] = state->mutable_data_ptr();
    entry.written.push_back(*state);
  }
  const at::Tensor* const step = read(keys().step, true);
  check_counter(*step, entry.param, "step", where_, names_[index]);
  row.step = step->mutable_data_ptr<float>();
  entry.written.push_back(*step);
  const auto* const step_impl = step->unsafeGetTensorImpl();
  if (entry.step != nullptr && (entry.step != step_impl || entry.step_version != step->_version()))
    counters_changed_ = true;
  entry.step = step_impl;
  const auto start = [&](const py::str& key, const char* name) -> const float* {
    const at::Tensor* const counter = read(key, false);
    if (counter == nullptr) return nullptr;
    check_counter(*counter, entry.param, name, where_, names_[index]);
    return counter->const_data_ptr<float>();
  };
  row.schedule_start = start(keys().schedule_start, "schedule_start");
  row.bias_correction_start = start(keys().bias_correction_start, "bias_correction_start");
}

bool StepPlan::prepare(const py::function& init_state) {
  counters_changed_ = false;
#if defined(BERTADAM_WITH_CUDA)
  if (device_.is_cuda()) {
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    if (cuda::is_capturing(guard.getStream(device_).native_handle())) {
      throw std::runtime_error(where_ +
                               ": step() was called while a CUDA graph is being captured, which is not supported yet; "
                               "capture forward and backward, and call step() outside of the graph");
    }
  }
#endif
  const bool state_changed = PyDict_Size(state_.ptr()) != n_states_;
  std::vector<size_t> missing;
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    // A dict that only this plan still refers to has been replaced in optimizer.state.
    if (state_changed || Py_REFCNT(entry.state.ptr()) == 1) find_state(entry, names_[i]);
    TensorRow& row = rows()[i];
    row = TensorRow{};
    if (!entry.state.empty()) {
      if (entry.grad != nullptr) read_state(entry, i, row);
    } else if (entry.grad != nullptr || entry.param.requires_grad()) {
      missing.push_back(i);
    }
    if (entry.grad == nullptr) continue;
    row.param = entry.param.mutable_data_ptr();
    // An empty gradient has no address, and a null one would mean that there is none.
    row.grad = entry.param.numel() > 0 ? entry.grad->const_data_ptr() : static_cast<const void*>(&row);
  }
  // Only now, when all that exists has been found in order.
  for (const size_t i : missing) {
    init_state(entries_[i].object);
    find_state(entries_[i], names_[i]);
    if (entries_[i].grad != nullptr) read_state(entries_[i], i, rows()[i]);
  }
  n_states_ = PyDict_Size(state_.ptr());
  check_overlaps();
  bool null_step = true;
  for (size_t g = 0; g < n_groups_; ++g) null_step = null_step && groups()[g].lr == 0.0;
  make_work(null_step);
  return counters_changed_;
}

void StepPlan::check_overlaps() {
  std::vector<const void*> pointers;
  pointers.reserve(entries_.size() * (2 + Adam::kNumStates));
  for (size_t i = 0; i < entries_.size(); ++i) {
    const TensorRow& row = rows()[i];
    pointers.push_back(row.param);
    pointers.insert(pointers.end(), row.states, row.states + Adam::kNumStates);
    pointers.push_back(row.step);
  }
  if (pointers == written_pointers_) return;
  std::vector<Interval> memory;
  const auto add = [&memory](const void* pointer, int64_t bytes, size_t owner, const char* role) {
    const auto* const begin = static_cast<const char*>(pointer);
    if (bytes > 0) memory.push_back({begin, begin + bytes, static_cast<uint32_t>(owner), role});
  };
  for (size_t i = 0; i < entries_.size(); ++i) {
    const TensorRow& row = rows()[i];
    if (row.grad == nullptr) continue;
    const auto bytes = static_cast<int64_t>(entries_[i].param.nbytes());
    add(row.param, bytes, i, "the memory");
    for (int k = 0; k < Adam::kNumStates; ++k) add(row.states[k], bytes, i, Adam::kStateNames[k]);
    add(row.step, sizeof(float), i, "step");
  }
  check_disjoint(memory, where_, names_);
  written_pointers_ = std::move(pointers);
}

void StepPlan::make_work(bool null_step) {
  if (work_is_current_ && null_step == null_step_) return;
  null_step_ = null_step;
  std::vector<int64_t> n_elements;
  std::vector<uint32_t> group;
  std::vector<bool> needs_norm;
  bool any_norm = false;
  for (const Entry& entry : entries_) {
    n_elements.push_back(entry.param.numel());
    group.push_back(entry.group);
    needs_norm.push_back(settings_.group_needs_norm[entry.group]);
    any_norm = any_norm || needs_norm.back();
  }
  PlanOptions options{kCpuChunkElements, (settings_.clip_by_total_norm && any_norm) || null_step, 0};
#if defined(BERTADAM_WITH_CUDA)
  if (device_.is_cuda()) {
    options.chunk_elements = cuda::kChunkElements;
    int blocks = 0;
    const int error = cuda::resident_blocks(device_.index(), &blocks);
    TORCH_CHECK(error == 0, where_, ": CUDA error while planning: ", cuda::error_string(error));
    options.lookahead_chunks = int64_t{blocks} * cuda::kLookaheadPerBlock;
  }
#endif
  plan_ = make_plan(n_elements, group, needs_norm, options);
  TORCH_CHECK(plan_.items.size() < (size_t{1} << 31), where_, ": the parameters make ", plan_.items.size(),
              " work items, at most 2^31 are supported");
  const auto upload = [this](const void* data, size_t bytes) {
    const auto host =
        at::from_blob(const_cast<void*>(data), {static_cast<int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte));
    return at::empty({static_cast<int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte).device(device_)).copy_(host);
  };
  items_ = upload(plan_.items.data(), plan_.items.size() * sizeof(WorkItem));
  tensors_ = upload(plan_.tensors.data(), plan_.tensors.size() * sizeof(PlanTensor));
  scratch_.clear();
  norms_ = at::full_like(norms_, std::numeric_limits<double>::quiet_NaN());
  work_is_current_ = true;
}

StepPlan::Scratch StepPlan::make_scratch() const {
  const size_t n = entries_.size();
  const size_t counters = padded(4 * 32 * sizeof(uint32_t));  // each counter on a cache line of its own
  const size_t arrivals = padded(n * sizeof(uint32_t));
  const size_t coefficients = padded(n * sizeof(uint64_t));
  const size_t bytes = counters + 2 * arrivals + coefficients + static_cast<size_t>(plan_.n_nodes) * sizeof(double);
  Scratch scratch;
  scratch.memory = at::zeros({static_cast<int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte).device(device_));
  auto* base = static_cast<unsigned char*>(scratch.memory.mutable_data_ptr());
  auto* const words = reinterpret_cast<uint32_t*>(base);
  Workspace& w = scratch.workspace;
  w.ticket = words;
  w.workers_done = words + 32;
  w.epoch = words + 64;
  w.tensors_summed = words + 96;
  w.norm_arrivals = reinterpret_cast<uint32_t*>(base += counters);
  w.update_arrivals = reinterpret_cast<uint32_t*>(base += arrivals);
  w.coefficients = reinterpret_cast<uint64_t*>(base += arrivals);
  w.nodes = reinterpret_cast<double*>(base += coefficients);
  return scratch;
}

StepPlan::Scratch& StepPlan::scratch_of(void* stream) {
  auto found = scratch_.find(stream);
  if (found == scratch_.end()) found = scratch_.emplace(stream, make_scratch()).first;
  return found->second;
}

StepArgs StepPlan::step_args(const Workspace& workspace) const {
  StepArgs args{};
  args.items = static_cast<const WorkItem*>(items_.const_data_ptr());
  args.tensors = static_cast<const PlanTensor*>(tensors_.const_data_ptr());
  args.n_items = static_cast<uint32_t>(plan_.items.size());
  args.n_tensors = static_cast<uint32_t>(entries_.size());
  args.n_groups = static_cast<uint32_t>(n_groups_);
  args.total_tree = plan_.n_nodes - tree_nodes(static_cast<int64_t>(entries_.size()));
  args.clip_by_total_norm = settings_.clip_by_total_norm;
  args.skip_nonfinite = settings_.skip_nonfinite;
  args.wait_for_all = plan_.waits_for_all;
  args.skip_if_all_zero = null_step_;
  args.workspace = workspace;
  args.statistics = {norms_.mutable_data_ptr<double>(), total_norm_.mutable_data_ptr<double>(),
                     clip_coefficients_.mutable_data_ptr<float>(), n_skipped_.mutable_data_ptr<int64_t>()};
  return args;
}

void StepPlan::run() {
  if (plan_.items.empty()) return;
  if (device_.is_cuda()) {
    run_on_cuda();
  } else {
    run_on_cpu();
  }
  for (Entry& entry : entries_) {
    if (entry.grad == nullptr) continue;
    entry.param.unsafeGetTensorImpl()->bump_version();
    for (const at::Tensor& tensor : entry.written) tensor.unsafeGetTensorImpl()->bump_version();
    entry.step_version = entry.written.back()._version();  // the step is read last
    entry.written.clear();
  }
}

void StepPlan::run_on_cpu() {
  StepArgs args = step_args(scratch_of(nullptr).workspace);
  args.groups = groups();
  args.rows = rows();
  args.chunk_elements = kCpuChunkElements;
  int64_t n_elements = 0;
  for (const Entry& entry : entries_) n_elements += entry.param.numel();
  const int64_t useful = std::max<int64_t>(1, n_elements / kCpuElementsPerWorker);
  args.n_workers = static_cast<uint32_t>(workers > 0 ? workers : std::min<int64_t>(useful, at::get_num_threads()));
  const cpu::Worker worker = cpu::worker(RuleId::kAdam, chosen_isa());
  std::vector<std::thread::id> ran_on(args.n_workers);
  {
    const py::gil_scoped_release released;
    at::parallel_for(0, args.n_workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        ran_on[i] = std::this_thread::get_id();
        worker(args);
      }
    });
  }
  n_threads = std::set<std::thread::id>(ran_on.begin(), ran_on.end()).size();
}

void StepPlan::run_on_cuda() {
#if defined(BERTADAM_WITH_CUDA)
  const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
  const c10::Stream stream = guard.getStream(device_);
  Scratch& scratch = scratch_of(stream.native_handle());
  if (!scratch.launcher) {
    scratch.launcher = std::make_unique<cuda::Launcher>(device_.index());
    // Freed memory is handed out again once this stream has passed, too.
    for (const at::Tensor& tensor : {scratch.memory, items_, tensors_, norms_, total_norm_, clip_coefficients_}) {
      tensor.record_stream(stream);
    }
  }
  const int error =
      scratch.launcher->launch_adam_float32(step_args(scratch.workspace), table_, stream.native_handle(), workers);
  TORCH_CHECK(error == 0, where_, ": the step could not be launched on ", device_, ": ", cuda::error_string(error));
#else
  throw std::runtime_error(where_ + ": the parameters are on " + device_.str() +
                           ", but this build of bertadam_cuda has no CUDA kernels; rebuild it where nvcc is found "
                           "(python -m bertadam_cuda tells more)");
#endif
}

std::optional<at::Tensor> StepPlan::grad_norms() const {
  for (const bool norm : settings_.group_needs_norm) {
    if (norm) return norms_;
  }
  return std::nullopt;
}

std::optional<at::Tensor> StepPlan::total_norm() const {
  return settings_.clip_by_total_norm && grad_norms() ? std::optional(total_norm_) : std::nullopt;
}

bool StepPlan::staged() const {
#if defined(BERTADAM_WITH_CUDA)
  for (const auto& [stream, scratch] : scratch_) {
    if (scratch.launcher && scratch.launcher->staged()) return true;
  }
#endif
  return false;
}

std::vector<at::Tensor> StepPlan::scratch() const {
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
  throw py::value_error("set_cpu_isa: '" + name + "' is not compiled in or not supported by this machine");
}

}  // namespace bertadam::binding
