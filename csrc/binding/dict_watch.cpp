#include "binding/dict_watch.h"

namespace py = pybind11;

namespace bertadam::binding {
namespace {

#if PY_VERSION_HEX >= 0x030C0000

constexpr int kNone = -1;

// Counts what happens to all watched dicts of a kind. A dict is never unwatched: another plan may watch it.
template <DictKind kKind>
struct Watcher {
  static inline uint64_t n_writes = 0;
  static int on_write(PyDict_WatchEvent, PyObject*, PyObject*, PyObject*) {
    ++n_writes;
    return 0;
  }
  // The interpreter has eight of them. Where none is left, every dict is read at every step.
  static int id() {
    static const int watcher = [] {
      const int added = PyDict_AddWatcher(&on_write);
      if (added < 0) PyErr_Clear();
      return added < 0 ? kNone : added;
    }();
    return watcher;
  }
};

int watcher_of(DictKind kind) {
  return kind == DictKind::kStates ? Watcher<DictKind::kStates>::id() : Watcher<DictKind::kGroups>::id();
}

uint64_t writes_of(DictKind kind) {
  return kind == DictKind::kStates ? Watcher<DictKind::kStates>::n_writes : Watcher<DictKind::kGroups>::n_writes;
}

#else

// PEP 509: unique among all dicts, and another one after every write.
uint64_t version_of(const py::object& dict) { return reinterpret_cast<PyDictObject*>(dict.ptr())->ma_version_tag; }

#endif

}  // namespace

#if PY_VERSION_HEX >= 0x030C0000

void DictWatch::watch(std::vector<py::object> dicts) {
  const int watcher = watcher_of(kind_);
  is_watching_ = watcher != kNone;
  dicts_ = std::move(dicts);
  for (const py::object& dict : dicts_) {
    if (is_watching_ && PyDict_Watch(watcher, dict.ptr()) < 0) throw py::error_already_set();
  }
  accept();
}

void DictWatch::accept() { versions_.assign(1, writes_of(kind_)); }

bool DictWatch::unwritten() const { return is_watching_ && versions_[0] == writes_of(kind_); }

#else

void DictWatch::watch(std::vector<py::object> dicts) {
  dicts_ = std::move(dicts);
  is_watching_ = true;
  accept();
}

void DictWatch::accept() {
  versions_.clear();
  for (const py::object& dict : dicts_) versions_.push_back(version_of(dict));
}

bool DictWatch::unwritten() const {
  if (!is_watching_) return false;
  for (size_t i = 0; i < dicts_.size(); ++i) {
    if (version_of(dicts_[i]) != versions_[i]) return false;
  }
  return true;
}

#endif

}  // namespace bertadam::binding
