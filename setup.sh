#!/usr/bin/env bash
# Sets Weft up on this machine and uses it.
#   ./setup.sh train [FILE...]   install what is missing, build, prepare the data (the texts of the fortunes
#                                package, or FILEs), train experiments/configs/quickstart.yaml, print a sample
#   ./setup.sh test [full]       install what is missing, build, run the quick tests, or all of them
# Packages come from apt (with sudo when not root). Nothing is installed, and no network is used, when all is there.
# Otherwise libraries are found under CMAKE_PREFIX_PATH and in what environment modules set.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BUILD=build
FORTUNES=/usr/share/games/fortunes
JOBS=${WEFT_JOBS:-$(nproc)}
LOG=$BUILD/setup.log

usage() {
  say "usage:"
  sed -n '3,5s/^# //p' "$HERE/setup.sh"
  exit "$1"
}

say() { printf '%s\n' "$*"; }

die() {
  printf 'setup.sh: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
  exit 1
}

# phase TEXT COMMAND...: runs it with its output in the log, and says how long it took; on failure shows the log's end.
phase() {
  local text=$1 start=$SECONDS status=0
  shift
  printf '%-45s ' "$text"
  "$@" >"$LOG" 2>&1 || status=$?
  if [ $status -ne 0 ]; then
    say "failed"
    tail -n 40 "$LOG" >&2
    die "$text: failed" "the whole output is in $LOG"
  fi
  printf '%4d s\n' $((SECONDS - start))
}

have() { command -v "$1" >/dev/null 2>&1; }

# How to become root for apt: "" when root already, sudo when there is one, and "no" otherwise.
root_prefix() {
  if ! have apt-get; then
    say no
  elif [ "$(id -u)" -eq 0 ]; then
    say ""
  elif have sudo; then
    say sudo
  else
    say no
  fi
}

apt_install() {
  local prefix
  prefix=$(root_prefix)
  # The package lists may be old or absent, so bring them first; a failure there shows again at the install.
  $prefix env DEBIAN_FRONTEND=noninteractive apt-get -q update || true
  $prefix env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$@"
}

# install PACKAGE...: REASON is what to show where there is no apt or no way to be root.
install() {
  [ "$(root_prefix)" != no ] || die "$REASON" \
    "there is no apt here, or neither root nor sudo; install them by hand or load their modules"
  local start=$SECONDS
  printf '%-45s ' "installing $*"
  if ! apt_install "$@" >"$LOG" 2>&1; then
    say "failed"
    tail -n 20 "$LOG" >&2
    die "$REASON" "apt could not install $*; its output is in $LOG"
  fi
  printf '%4d s\n' $((SECONDS - start))
}

install_tools() {
  local missing=()
  have "${CC:-cc}" || missing+=(gcc libc6-dev)
  have cmake || missing+=(cmake)
  have ninja || have make || missing+=(ninja-build)
  have pkg-config || missing+=(pkg-config)
  if [ ${#missing[@]} -gt 0 ]; then
    # pkg-config only helps to find libraries in unusual places: go on without it where it cannot be had.
    [ "${missing[*]}" != pkg-config ] || [ "$(root_prefix)" != no ] || return 0
    REASON="missing programs: ${missing[*]} (looked in PATH: $PATH)" install "${missing[@]}"
  fi
}

configure() {
  local generator=()
  if [ ! -e $BUILD/CMakeCache.txt ] && have ninja; then generator=(-G Ninja); fi
  cmake -S . -B $BUILD "${generator[@]}" -DCMAKE_BUILD_TYPE=Release ${WEFT_WERROR:+-DWEFT_WERROR=$WEFT_WERROR} \
    "$@" >"$LOG" 2>&1
}

# Configure; where libraries are missing install them and configure again. What is found only then may show more that
# is missing: an OpenBLAS, say, that is another flavour than the one needed.
prepare_build() {
  local start=$SECONDS installed=" " package packages new
  until configure "$@"; do
    if [ ! -e $BUILD/missing-packages.txt ]; then
      tail -n 40 "$LOG" >&2
      die "configuring failed" "the whole output is in $LOG; removing the folder $BUILD starts afresh"
    fi
    new=()
    mapfile -t packages <$BUILD/missing-packages.txt
    for package in "${packages[@]}"; do
      [[ $installed == *" $package "* ]] || new+=("$package")
    done
    if [ ${#new[@]} -eq 0 ]; then
      tail -n 40 "$LOG" >&2
      die "configuring failed after the installation" "the whole output is in $LOG"
    fi
    REASON=$(cat $BUILD/missing-libraries.txt) install "${new[@]}"
    installed+="${new[*]} "
    start=$SECONDS
  done
  printf '%-45s %4d s\n' "configuring" $((SECONDS - start))
}

# Optional libraries that tests exercise: without them those tests are left out, so their absence is no error.
install_optional() {
  local packages
  if [ ! -s $BUILD/optional-packages.txt ] || [ "$(root_prefix)" = no ]; then return; fi
  mapfile -t packages <$BUILD/optional-packages.txt
  if apt_install "${packages[@]}" >"$LOG" 2>&1; then
    prepare_build "$@"
  else
    say "left out, as it could not be installed: ${packages[*]}"
  fi
}

data_fortunes() {
  local store=data-cache/fortunes.h5 texts=() file
  if [ ! -d $FORTUNES ] || [ -z "$(ls $FORTUNES 2>/dev/null)" ]; then
    REASON="the default data is missing: the texts of the Debian package fortunes, in $FORTUNES" install fortunes
  fi
  for file in "$FORTUNES"/*; do
    case $file in
    *.dat | *.u8) ;;
    *) [ ! -f "$file" ] || texts+=("$file") ;;
    esac
  done
  [ ${#texts[@]} -gt 0 ] || die "no texts in $FORTUNES" "install the package fortunes, or name files of your own"
  STORE=$store
  if [ -e $store ] && $BUILD/weft data info $store >/dev/null 2>&1; then
    say "data: $store is there already"
    return
  fi
  rm -f $store
  phase "data: ${#texts[@]} texts of fortunes" $BUILD/weft data build "${texts[@]}" --split % -o $store
}

data_own() {
  STORE=data-cache/own.h5
  rm -f $STORE
  phase "data: $*" $BUILD/weft data build "$@" -o $STORE
}

# The first of runs/NAME, runs/NAME-2, ... that does not exist: an earlier run is never overwritten.
free_run() {
  local dir=runs/$1 n=2
  while [ -e "$dir" ]; do
    dir=runs/$1-$n
    n=$((n + 1))
  done
  say "$dir"
}

train() {
  local run
  mkdir -p data-cache runs
  if [ $# -gt 0 ]; then
    data_own "$@"
    run=$(free_run own)
  else
    data_fortunes
    run=$(free_run quickstart)
  fi
  say "training in $run"
  $BUILD/weft train experiments/configs/quickstart.yaml --set run.dir="$run" --set data.store=$STORE
  say
  say "a sample:"
  $BUILD/weft generate "$run" --prompt "The " --echo --tokens 400 --temperature 0.8 --seed 1
  say
  say "the run lies in $run (metrics.jsonl, checkpoints); all in all $SECONDS s"
}

run_tests() {
  local select=(-L quick)
  [ "$1" != full ] || select=()
  # Open MPI refuses root otherwise; in a container there is often nobody else.
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  ctest --test-dir $BUILD --output-on-failure -j "$JOBS" "${select[@]}"
  say "all in all $SECONDS s"
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
train | test) ;;
-h | --help | help) usage 0 ;;
*) usage 1 >&2 ;;
esac

# The FILEs are named from where the caller stands.
files=()
if [ "$command" = train ]; then
  for file in "$@"; do
    [ -r "$file" ] || die "cannot read $file" "name text files, or folders of them, after train"
    files+=("$(realpath "$file")")
  done
fi

cd "$HERE"
mkdir -p $BUILD
install_tools
case $command in
train)
  prepare_build
  phase "building" cmake --build $BUILD -j "$JOBS" --target weft
  train "${files[@]}"
  ;;
test)
  case ${1:-quick} in
  quick | full) ;;
  *) usage 1 >&2 ;;
  esac
  prepare_build -DWEFT_TESTS=ON
  install_optional -DWEFT_TESTS=ON
  phase "building" cmake --build $BUILD -j "$JOBS"
  run_tests "${1:-quick}"
  ;;
esac
