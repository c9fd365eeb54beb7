"""The libraries that torch's compiler makes, called without Python: several gradient steps at once.

The compiler writes a library in C++ with one function of tensors, which computes on one thread. It is
compiled here with more code around that function, so that

- several calls are spread over threads: the shares of a minibatch. OpenMP's threads would meet at a
  barrier after each operator, and wait there longer than a small network computes; these meet once in a
  gradient step. Which thread computes a call changes no bit of its result, nor does the number of cores.
- the gradients of a minibatch's shares go to a second library's function, which moves the weights, and
  so on with the next minibatch. The calls of Python in between took an eighth of a small network's step.
- small buffers are kept between calls.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_ENTRY = "void inductor_entry_impl("
_RELEASES = "py::gil_scoped_release_simple release;"  # done once for all calls
_TAKES = re.compile(r"steal_from_raw_handles_to_raii_handles\(input_handles, (\d+)\)")
_RETURNS = re.compile(r"output_handles\[0\] = (\w+)\.release\(\);")

_THREADS = """
#include <omp.h>
#include <sched.h>
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace at {
void init_num_threads();
}

namespace {

// A thread that does one piece of work at a time. For some 0.2 ms it looks out for the next one, because
// to be woken would take longer than the rest of a gradient step does; then it sleeps.
class Helper {
  std::atomic<long> asked_{0}, done_{0};
  std::function<void()> work_;
  std::exception_ptr error_;
  std::mutex mutex_;
  std::condition_variable wakes_;

  void wait_for(long next) {
    for (int looks = 0; looks < 500; ++looks) {
      if (asked_.load(std::memory_order_acquire) >= next) return;
      sched_yield();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    wakes_.wait(lock, [&] { return asked_.load(std::memory_order_acquire) >= next; });
  }

  void live() {
    at::init_num_threads();  // else MKL_NUM_THREADS has MKL start more threads beside this one
    omp_set_num_threads(1);
    aoti_torch_grad_mode_set_enabled(false);  // each thread has its own switch
    for (long next = 1;; ++next) {
      wait_for(next);
      try {
        work_();
      } catch (...) {
        error_ = std::current_exception();
      }
      done_.store(next, std::memory_order_release);
    }
  }

 public:
  Helper() { std::thread([this] { live(); }).detach(); }

  void begin(std::function<void()> work) {
    work_ = std::move(work);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      asked_.fetch_add(1, std::memory_order_release);
    }
    wakes_.notify_one();
  }

  void finish() {
    while (done_.load(std::memory_order_acquire) < asked_.load()) sched_yield();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }
};

int usable_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);
}

// The helpers stay until the process ends: then they sleep, and nothing that they use is torn down.
void on_threads(int calls, const std::function<void(int)>& call) {
  static auto& helpers = *new std::vector<Helper*>();
  static const int most = usable_cores();
  const int threads = std::min(calls, most);
  while (int(helpers.size()) < threads - 1) helpers.push_back(new Helper());
  auto share = [&](int thread) {
    for (int i = thread; i < calls; i += threads) call(i);
  };
  for (int t = 1; t < threads; ++t) helpers[t - 1]->begin([&, t] { share(t); });
  std::exception_ptr error;
  try {
    share(0);
  } catch (...) {
    error = std::current_exception();  // the helpers still read what is on this thread's stack
  }
  for (int t = 1; t < threads; ++t) {
    try {
      helpers[t - 1]->finish();
    } catch (...) {
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

// A small buffer at one place of the function, made once for each thread: to make and free all of them in
// each call takes a tenth of a small network's gradient step, and more where threads do it at once.
template <int place>
AOTITorchError kept_empty(
    int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t device,
    int32_t index, AtenTensorHandle* buffer) {
  static thread_local AtenTensorHandle kept = nullptr;
  int64_t numbers = 1;
  for (int64_t i = 0; i < dims; ++i) numbers *= sizes[i];
  if (numbers > 1 << 18)
    return aoti_torch_empty_strided(dims, sizes, strides, dtype, device, index, buffer);
  if (kept == nullptr) {
    auto code = aoti_torch_empty_strided(dims, sizes, strides, dtype, device, index, &kept);
    if (code != AOTI_TORCH_SUCCESS) return code;
  }
  return aoti_torch_new_tensor_handle(kept, buffer);
}

}  // namespace
"""

# a module in place of torch's own, which has the one function and takes the inputs of one call
_MODULE = """
using Function = void (*)(AtenTensorHandle*, AtenTensorHandle*);

// Tensors that are freed at its end, but for those that were handed on: their places are null. A function
// takes its inputs so.
struct Handles : std::vector<AtenTensorHandle> {
  using std::vector<AtenTensorHandle>::vector;
  Handles(Handles&&) = default;
  ~Handles() {
    for (auto handle : *this)
      if (handle != nullptr) aoti_torch_delete_tensor_object(handle);
  }
};

// The tensors that a list of addresses from torch stands for.
static Handles handles_of(PyObject* list) {
  Handles handles(PyList_GET_SIZE(list));
  for (size_t i = 0; i < handles.size(); ++i)
    handles[i] = static_cast<AtenTensorHandle>(PyCapsule_GetPointer(PyList_GET_ITEM(list, i), nullptr));
  return handles;
}

// A list of addresses for torch, which frees the tensors.
static PyObject* list_of(Handles&& handles) {
  PyObject* list = PyList_New(handles.size());
  for (size_t i = 0; i < handles.size(); ++i)
    PyList_SET_ITEM(list, i, PyCapsule_New(std::exchange(handles[i], nullptr), nullptr, nullptr));
  return list;
}

static void calls(AtenTensorHandle* inputs, AtenTensorHandle* outputs, int number) {
  on_threads(number, [&](int i) { one_call(inputs + i * inputs_of_a_call, outputs + i); });
}

// inductor_entry_cpp(inputs): the inputs of one or more calls, one after the other -> an output of each.
static PyObject* entry(PyObject*, PyObject* args) {
  PyObject* list;
  if (!PyArg_ParseTuple(args, "O!", &PyList_Type, &list)) return nullptr;
  try {
    Handles inputs = handles_of(list), outputs(inputs.size() / inputs_of_a_call);
    {
      py::gil_scoped_release_simple release;
      calls(inputs.data(), outputs.data(), int(outputs.size()));
    }
    return list_of(std::move(outputs));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

// function(): where the function is, for `steps` of another library.
static PyObject* function(PyObject*, PyObject*) {
  return PyCapsule_New(reinterpret_cast<void*>(one_call), nullptr, nullptr);
}

// steps(inputs, function, others, places): in each step this library's function is called on its inputs,
// once for each place, and then another library's function on the `others`, in which the outputs of these
// calls have taken the places. Returns what the other function returned in each step.
static PyObject* steps(PyObject*, PyObject* args) {
  PyObject *input_list, *capsule, *other_list, *place_list;
  if (!PyArg_ParseTuple(
          args, "O!OO!O!", &PyList_Type, &input_list, &capsule, &PyList_Type, &other_list,
          &PyList_Type, &place_list))
    return nullptr;
  try {
    auto second = reinterpret_cast<Function>(PyCapsule_GetPointer(capsule, nullptr));
    Handles inputs = handles_of(input_list), others = handles_of(other_list);
    std::vector<int> share_at(others.size(), -1);
    const int shares = int(PyList_GET_SIZE(place_list));
    for (int i = 0; i < shares; ++i)
      share_at[PyLong_AsLong(PyList_GET_ITEM(place_list, i))] = i;
    const size_t of_a_step = shares * inputs_of_a_call;
    Handles outputs(inputs.size() / of_a_step);
    {
      py::gil_scoped_release_simple release;
      Handles found(shares), all(others.size());
      for (size_t step = 0; step < outputs.size(); ++step) {
        calls(inputs.data() + step * of_a_step, found.data(), shares);
        for (size_t i = 0; i < all.size(); ++i) {
          if (share_at[i] >= 0) all[i] = std::exchange(found[share_at[i]], nullptr);
          else AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(others[i], &all[i]));
        }
        second(all.data(), &outputs[step]);
      }
    }
    return list_of(std::move(outputs));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

static PyMethodDef methods[] = {
    {"inductor_entry_cpp", entry, METH_VARARGS, nullptr},
    {"function", function, METH_NOARGS, nullptr},
    {"steps", steps, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "inductor_entry_cpp", nullptr, -1, methods};

PyMODINIT_FUNC PyInit_inductor_entry_cpp() { return PyModule_Create(&module); }
"""


class Native:
    """A library's function of tensors, which returns one tensor.

    Args:
        module: that torch's compiler has made within `framed`.
    """

    def __init__(self, module: ModuleType):
        self.module = module

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """The output of each of some calls at once, whose inputs come one after the other."""
        with torch.no_grad():
            return _tensors_at(self.module.inductor_entry_cpp(_addresses_of(tensors)))

    def steps(
        self, tensors: list[Tensor], second: Native, others: list[Tensor], places: list[int]
    ) -> list[Tensor]:
        """Call this function, then the second one on what it returned, and so on.

        Args:
            tensors: the inputs of this function's calls, one after the other; a step has as many calls
                as there are places.
            others: the inputs of the second function.
            places: where among these what a step's calls return is put.

        Returns:
            what the second function returns in each step.
        """
        function, inputs = second.module.function(), _addresses_of(tensors)
        with torch.no_grad():
            return _tensors_at(self.module.steps(inputs, function, _addresses_of(others), places))


def _addresses_of(tensors: Sequence[Tensor]) -> Any:
    return torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)


def _tensors_at(addresses: Any) -> list[Tensor]:
    return torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(addresses)


@contextlib.contextmanager
def framed() -> Iterator[None]:
    """Compile libraries, in here, as `Native` takes them; each of their functions has one output."""
    from torch._inductor.codecache import CppWrapperCodeCache as Cache

    load: Any = Cache.load_pybinding
    suffix = Cache.suffix_template

    def load_framed(*, main_code: str, num_outputs: int, **others: Any) -> Any:
        assert num_outputs == 1
        Cache.suffix_template = _MODULE.replace("{", "{{").replace("}", "}}")  # it is formatted
        try:
            return load(main_code=_framed(main_code), num_outputs=num_outputs, **others)
        finally:
            Cache.suffix_template = suffix

    Cache.load_pybinding = load_framed
    try:
        yield
    finally:
        del Cache.load_pybinding  # it is inherited


def _framed(code: str) -> str:
    """A library's code with the threads before its function, which gets another name."""
    takes = _TAKES.search(code)
    assert takes is not None
    assert code.count(_ENTRY) == code.count(_RELEASES) == 1
    head, function = code.replace(_RELEASES, "").split(_ENTRY)
    # what is returned must not be a buffer that the next call writes to
    clone = r"AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_clone(\1, output_handles));"
    function, returns = _RETURNS.subn(clone, function)
    if returns == 1:
        function = function.replace("aoti_torch_empty_strided(", "kept_empty<__COUNTER__>(")
    size = f"constexpr size_t inputs_of_a_call = {takes[1]};\n"
    return head + _THREADS + size + "static void one_call(" + function
