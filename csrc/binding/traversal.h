// Lets Python's garbage collector see what plans and steppers hold: a schedule that is a method, say, may lead
// back to the optimizer. The optimizer's own __dict__ breaks such a ring, so nothing is cleared here.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace bertadam::binding {

// Calls the collector for each reference that is held, once.
class Visit {
 public:
  Visit(visitproc visit, void* arg) : visit_(visit), arg_(arg) {}
  void operator()(const pybind11::handle& object) {
    if (object.ptr() != nullptr && result_ == 0) result_ = visit_(object.ptr(), arg_);
  }
  int result() const { return result_; }

 private:
  const visitproc visit_;
  void* const arg_;
  int result_ = 0;
};

// For py::class_<T>, where T has `void traverse(Visit&) const`.
template <class T>
pybind11::custom_type_setup traversed() {
  return pybind11::custom_type_setup([](PyHeapTypeObject* heap_type) {
    PyTypeObject* const type = &heap_type->ht_type;
    type->tp_flags |= Py_TPFLAGS_HAVE_GC;
    type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
      Visit visited(visit, arg);
      visited(reinterpret_cast<PyObject*>(Py_TYPE(self)));
      if (pybind11::detail::is_holder_constructed(self)) pybind11::cast<T&>(pybind11::handle(self)).traverse(visited);
      return visited.result();
    };
  });
}

}  // namespace bertadam::binding
