# What Weft links, found once: required libraries, then the optional ones (AUTO: when found; ON: must be; OFF).
include(WeftFind)

find_package(Threads REQUIRED)
find_package(OpenMP COMPONENTS C)
if(NOT OpenMP_C_FOUND)
  weft_missing(openmp "gcc (or libomp-dev for clang)" "threads inside kernels" "-fopenmp of ${CMAKE_C_COMPILER}")
endif()

# Debian has flavours beside each other, and pkg-config knows the one that the system prefers.
weft_find(openblas HEADER cblas.h LIBRARIES openblas PKG openblas SUFFIXES openblas openblas-openmp
  EXCEPT "openblas-(pthread|serial)/?$" PACKAGE libopenblas-openmp-dev PURPOSE "matrix products")
weft_find(hdf5 HEADER hdf5.h LIBRARIES hdf5 hdf5_serial PKG hdf5 SUFFIXES hdf5/openmpi hdf5/serial
  PACKAGE libhdf5-dev PURPOSE "token stores and checkpoints")
weft_find(yaml HEADER yaml.h LIBRARIES yaml PKG yaml-0.1 PACKAGE libyaml-dev PURPOSE "config files")
weft_find(jansson HEADER jansson.h LIBRARIES jansson PKG jansson PACKAGE libjansson-dev
  PURPOSE "safetensors and tokenizer.json")
weft_find(xxhash HEADER xxhash.h LIBRARIES xxhash PKG libxxhash PACKAGE libxxhash-dev PURPOSE "sums over files")
weft_find(pcre2 HEADER pcre2.h LIBRARIES pcre2-8 PKG libpcre2-8 PACKAGE libpcre2-dev
  PURPOSE "splitting text before byte-level BPE")
weft_find(random123 HEADER Random123/philox.h PACKAGE librandom123-dev PURPOSE "random numbers")

if(NOT WEFT_TESTS STREQUAL "OFF")
  set(optional OPTIONAL)
  if(WEFT_TESTS STREQUAL "ON")
    set(optional)
  endif()
  weft_find(check ${optional} HEADER check.h LIBRARIES check_pic check ALSO subunit rt m PKG check
    PACKAGE check PURPOSE "the tests")
endif()

if(NOT WEFT_SENTENCEPIECE STREQUAL "OFF")
  set(optional OPTIONAL)
  if(WEFT_SENTENCEPIECE STREQUAL "ON")
    set(optional)
  endif()
  weft_find(sentencepiece ${optional} HEADER sentencepiece_processor.h LIBRARIES sentencepiece
    ALSO sentencepiece_train PKG sentencepiece PACKAGE libsentencepiece-dev PURPOSE "SentencePiece tokenizers")
  if(WEFT_HAVE_SENTENCEPIECE)
    include(CheckLanguage)
    check_language(CXX)
    if(CMAKE_CXX_COMPILER)
      enable_language(CXX)
    elseif(WEFT_SENTENCEPIECE STREQUAL "ON")
      weft_missing(c++ g++ "the SentencePiece library is C++" "a C++ compiler")
    else()
      set(WEFT_HAVE_SENTENCEPIECE FALSE)
    endif()
  endif()
endif()

if(NOT WEFT_LIBXSMM STREQUAL "OFF")
  set(optional OPTIONAL)
  if(WEFT_LIBXSMM STREQUAL "ON")
    set(optional)
  endif()
  weft_find(libxsmm ${optional} HEADER libxsmm.h LIBRARIES xsmm ALSO xsmmnoblas PKG libxsmm
    PACKAGE libxsmm-dev PURPOSE "small matrix products")
endif()

if(NOT WEFT_MPI STREQUAL "OFF")
  find_package(MPI QUIET COMPONENTS C)
  set(WEFT_HAVE_MPI ${MPI_C_FOUND})
  if(NOT MPI_C_FOUND AND WEFT_MPI STREQUAL "ON")
    weft_missing(mpi libopenmpi-dev "runs over several processes" "mpicc, MPI_HOME")
  elseif(NOT MPI_C_FOUND OR NOT MPIEXEC_EXECUTABLE)
    file(APPEND ${CMAKE_BINARY_DIR}/optional-packages.txt "libopenmpi-dev\nopenmpi-bin\n")
  endif()
endif()

weft_report_missing()

# An hdf5 built for MPI has headers that include mpi.h.
if(EXISTS ${HDF5_INCLUDE_DIR}/H5pubconf.h)
  file(STRINGS ${HDF5_INCLUDE_DIR}/H5pubconf.h hdf5_parallel REGEX "define H5_HAVE_PARALLEL 1")
  if(hdf5_parallel)
    find_package(MPI REQUIRED COMPONENTS C)
    target_link_libraries(weft::hdf5 INTERFACE MPI::MPI_C)
  endif()
endif()

# OpenBLAS must share the kernels' OpenMP threads: its pthread flavour would run a second set beside them.
if(NOT CMAKE_CROSSCOMPILING)
  include(CheckCSourceRuns)
  set(CMAKE_REQUIRED_LIBRARIES weft::openblas)
  check_c_source_runs("int openblas_get_parallel(void); int main(void) { return openblas_get_parallel() != 2; }"
    WEFT_OPENBLAS_IS_OPENMP)
  unset(CMAKE_REQUIRED_LIBRARIES)
  if(NOT WEFT_OPENBLAS_IS_OPENMP)
    unset(WEFT_OPENBLAS_IS_OPENMP CACHE)
    set(found ${OPENBLAS_LIBRARY})
    unset(OPENBLAS_LIBRARY CACHE)
    unset(OPENBLAS_INCLUDE_DIR CACHE)
    weft_missing(openblas libopenblas-openmp-dev "matrix products, in its OpenMP flavour"
      "openblas_get_parallel() == 2\; ${found} is another flavour, or does not run")
    weft_report_missing()
  endif()
endif()

if(WEFT_CUDA)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-virtual 90-real) # code for Hopper; PTX for the others since Ampere
  endif()
  enable_language(CXX)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
endif()

add_library(weft_core_external INTERFACE)
target_link_libraries(weft_core_external INTERFACE weft::openblas weft::hdf5 weft::jansson weft::xxhash
  weft::random123 Threads::Threads)
if(WEFT_HAVE_LIBXSMM)
  target_link_libraries(weft_core_external INTERFACE weft::libxsmm ${CMAKE_DL_LIBS})
  target_compile_definitions(weft_core_external INTERFACE WEFT_LIBXSMM=1)
endif()
