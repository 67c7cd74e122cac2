# WEFT_SANITIZE: compiler flags for the whole build and the environment of the tests.
#
# Threads are checked with clang, its OpenMP runtime (libomp) and archer, which tells the sanitizer what OpenMP
# synchronises; gcc's libgomp is not understood and gives false reports. Libraries that are not instrumented
# (OpenBLAS, HDF5) are left out by ignore_noninstrumented_modules. Archer does not outlive a fork, so the tests of a
# program run in one process.
set(WEFT_SANITIZER_ENVIRONMENT "")
if(NOT WEFT_SANITIZE)
  return()
endif()

if(WEFT_SANITIZE MATCHES "address")
  list(APPEND WEFT_SANITIZER_ENVIRONMENT
    ASAN_OPTIONS=detect_stack_use_after_return=1:allocator_may_return_null=1:strict_string_checks=1
    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1)
endif()

if(WEFT_SANITIZE MATCHES "thread")
  if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "WEFT_SANITIZE=thread needs clang with libomp: gcc's libgomp gives false reports\n"
      "hint: cmake --preset tsan")
  endif()
  string(REGEX MATCH "^[0-9]+" major ${CMAKE_C_COMPILER_VERSION})
  find_library(ARCHER_LIBRARY archer HINTS /usr/lib/llvm-${major}/lib)
  if(NOT ARCHER_LIBRARY)
    message(FATAL_ERROR "archer was not found: without it the thread sanitizer does not know OpenMP's barriers\n"
      "hint: install libomp-${major}-dev, or set ARCHER_LIBRARY to libarcher.so")
  endif()
  list(APPEND WEFT_SANITIZER_ENVIRONMENT OMP_TOOL_LIBRARIES=${ARCHER_LIBRARY} CK_FORK=no
    TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1:second_deadlock_stack=1)
endif()
