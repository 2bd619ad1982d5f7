#!/usr/bin/env bash
# The whole pipeline, from images and image-level labels to DeepLab-V2's scores.
set -euo pipefail
CALLER="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'TEXT'
usage: bash run.sh [options]

Without --data-root it runs on the built-in demo data: no download, CPU or GPU, minutes.
With it, it is the paper's run on a VOC 2012 folder, or as much of it as your own photos allow.

  --data-root DIR     data set in VOC 2012 layout, or your own photos (docs/own_data.md)
  --run-dir DIR       where all output goes (default: runs/NAME OF DATA ROOT)
  --demo SIZE         without --data-root: small (default), or large, which takes 45 minutes to show
                      plain CAM, fixed and learnable DRS side by side (docs/demo.md)
  --stages LIST       comma-separated stages to run, in this order (default: all of them, without
                      masks all but cam and evaluate):
                      data,cam,drs,maps,refine,labels,evaluate,deeplab,report
                      the large demo's default: data,cam,fixed,drs,maps,evaluate,report
  --gpus N            processes, one a GPU (default: 1); on a machine without a GPU, CPU processes
  --nodes M           machines; the same command is given on each (docs/cluster.md; default: 1)
  --rdzv HOST:PORT    with --nodes: where they meet, one of them and a free port on it
  --max-restarts N    times that failed processes are started again (default: 0)
  --seed N            of the demo data and of all trainings (default: 0)
  --overwrite         start over: do every stage again
  --quick             with --data-root: a first look, with trainings a twentieth as long
  --init WHAT         with --data-root: initial weights, imagenet (default), none or a checkpoint
  --train-args "..."  with --data-root: further options of all trainings, such as --lr; they come
                      after what is planned
  --background CUE    with --data-root: saliency (made by make_saliency.py where there is none),
                      threshold or crf (default: saliency where the maps are there, else crf)
  --val-share SHARE   with --data-root: hold out this share of the images, chosen by the seed
  --help              this text

An interrupted run goes on where it was when the same command is given again.
TEXT
}

fail() {
    echo "error: $1" >&2
    exit 1
}

ALL_STAGES=data,cam,drs,maps,refine,labels,evaluate,deeplab,report
LARGE_STAGES=data,cam,fixed,drs,maps,evaluate,report
DATA_ROOT="" DEMO="" RUN_DIR="" STAGES="" GPUS=1 NODES=1 RDZV="" RESTARTS=0 SEED=0 OVERWRITE=() PLAN=() INIT=imagenet TRAIN_ARGS=()
while [ $# -gt 0 ]; do
    case "$1" in
        --help|-h) usage; exit 0 ;;
        --overwrite) OVERWRITE=(--overwrite); shift; continue ;;
        --quick) PLAN+=(--quick); shift; continue ;;
        --data-root|--demo|--run-dir|--stages|--gpus|--nodes|--rdzv|--max-restarts|--seed|--init|--val-share|--background|--train-args)
            [ $# -ge 2 ] || fail "$1 needs a value" ;;
        *) usage >&2; fail "unknown option $1" ;;
    esac
    case "$1" in
        --data-root|--run-dir) # relative to where the command was given
            [ -n "$2" ] || fail "$1 is empty"
            path="$(cd "$CALLER" && realpath -m --relative-base="$OLDPWD" "$2")"
            if [ "$1" = --run-dir ]; then RUN_DIR="$path"; else DATA_ROOT="$path"; fi ;;
        --demo) DEMO="$2" ;;
        --stages) STAGES="$2" ;;
        --gpus) GPUS="$2" ;;
        --nodes) NODES="$2" ;;
        --rdzv) RDZV="$2" ;;
        --max-restarts) RESTARTS="$2" ;;
        --seed) SEED="$2" ;;
        --init) INIT="$2" ;;
        --train-args) read -ra TRAIN_ARGS <<<"$2" ;;
        --val-share|--background) PLAN+=("$1" "$2") ;;
    esac
    shift 2
done
[[ "$GPUS" =~ ^[1-9][0-9]*$ ]] || fail "--gpus must be a number from 1, got '$GPUS'"
[[ "$NODES" =~ ^[1-9][0-9]*$ ]] || fail "--nodes must be a number from 1, got '$NODES'"
[[ "$RESTARTS" =~ ^[0-9]+$ ]] || fail "--max-restarts must be a number, got '$RESTARTS'"
[ "$NODES" -eq 1 ] || [ -n "$RDZV" ] ||
    fail "--nodes $NODES needs --rdzv HOST:PORT: one of the machines, and a free port on it"
[ -z "$RDZV" ] || [[ "$RDZV" =~ ^[^:]+:[0-9]{1,5}$ ]] || fail "--rdzv must be HOST:PORT, got '$RDZV'"
[ -z "$RDZV" ] || [ "$NODES" -gt 1 ] || fail "--rdzv is for --nodes 2 or more"
[[ "$SEED" =~ ^[0-9]+$ ]] || fail "--seed must be a number, got '$SEED'"
[[ "$DEMO" =~ ^(small|large)?$ ]] || fail "--demo must be small or large, got '$DEMO'"
[ -z "$DEMO" ] || [ -z "$DATA_ROOT" ] || fail "--demo is for a run without --data-root"
[ "$DEMO" != large ] || ALL_STAGES="${ALL_STAGES/cam,/cam,fixed,}" STAGES="${STAGES:-$LARGE_STAGES}"
for stage in ${STAGES//,/ }; do
    [[ ",$ALL_STAGES," == *",$stage,"* ]] || fail "--stages: no stage '$stage'; there are $ALL_STAGES"
done

source utils/environment.sh
setup_environment requirements.txt

# Settings of the two runs. What is not set here has the paper's value as its default.
if [ -n "$DATA_ROOT" ]; then
    RUN_DIR="${RUN_DIR:-runs/$(basename "$(realpath -m "$DATA_ROOT")")}"
    # What there is, and what can be done with it. SCORED: the images whose pseudo labels are scored.
    LIST="" VAL="" SCORED="" BACKGROUND="" SALIENCY_DIR="" MAKE_SALIENCY="" BATCH="" EPOCHS="" MILESTONES=""
    REFINE_EPOCHS="" REFINE_MILESTONES="" ITERATIONS="" INIT_MODEL="" ONLINE_LABEL="" SIDE="" CONFIG=""
    NETWORK="" RATE="" REFINE_RATE="" SUPPRESSION=""
    settings="$(python -m datasets.plan "$DATA_ROOT" --run-dir "$RUN_DIR" --seed "$SEED" \
        --init "$INIT" "${PLAN[@]}")" || exit 1
    while read -r name value; do
        printf -v "$name" '%s' "$value"
    done <<<"$settings"
    TRAIN=(--list "$LIST" --seed "$SEED" --batch-size "$BATCH" --image-size "$SIDE"
           --background "$BACKGROUND" ${SALIENCY_DIR:+--saliency-dir "$SALIENCY_DIR"})
    [ "$SCORED" = train ] && [ "$BACKGROUND" = saliency ] || TRAIN+=(--val-list none)
    # Options of several words, from here; those of the command line come last, so that they count.
    read -ra words <<<"$NETWORK $RATE --epochs $EPOCHS --milestones $MILESTONES"
    CAM=("${TRAIN[@]}" "${words[@]}" "${TRAIN_ARGS[@]}")
    read -ra suppression <<<"$SUPPRESSION"
    DRS=("${TRAIN[@]}" "${words[@]}" "${suppression[@]}" "${TRAIN_ARGS[@]}")
    read -ra words <<<"$NETWORK $REFINE_RATE --epochs $REFINE_EPOCHS --milestones $REFINE_MILESTONES"
    REFINE=("${TRAIN[@]}" "${words[@]}" "${TRAIN_ARGS[@]}")
    LABELS=(--list "$LIST" --background "$BACKGROUND"
            ${SALIENCY_DIR:+--saliency-dir "$SALIENCY_DIR"})
    MAPS=(--background "${BACKGROUND/crf/threshold}"
          ${SALIENCY_DIR:+--saliency-dir "$SALIENCY_DIR"})
    DEEPLAB=("SPLIT.TRAIN=$LIST" "SPLIT.VAL=${VAL:-val}" "SOLVER.ITER_MAX=$ITERATIONS"
             "MODEL.INIT_MODEL=$INIT_MODEL" "SOLVER.ONLINE_LABEL=$ONLINE_LABEL")
else
    # `single` is the stand-in for ImageNet. CAM and DRS differ in --drs alone. A short training
    # from such a start needs a gentler suppression than the paper's 0.55; the large demo makes six
    # times as many steps, in which the learnable control can leave its prior (docs/demo.md).
    FIXED=(--drs fixed --delta 0.7)
    if [ "$DEMO" = large ]; then
        DATA_ROOT=data/demo-large PICTURES=(--train 800 --val 100 --single 900 --size 320) SIDE=288
        LENGTH=(--epochs 24 --milestones 18 22) CONTROL=(--drs learnable)
    else
        DATA_ROOT=data/demo PICTURES=(--train 400 --val 100 --single 600 --size 208) SIDE=192
        LENGTH=(--epochs 8 --milestones 6 8) CONTROL=("${FIXED[@]}")
    fi
    [ "$SEED" = 0 ] || DATA_ROOT+="-seed$SEED"
    RUN_DIR="${RUN_DIR:-runs/$(basename "$DATA_ROOT")}" CONFIG=demo.yaml
    DEMO_DATA=(--classes 6 "${PICTURES[@]}" --seed "$SEED")
    # Loaded in between: a process for it would take the network's cores, and a sixth more time.
    NETWORK=(--width 0.125 --batch-norm --image-size "$SIDE" --val-list none --seed "$SEED"
             --num-workers 0)
    PRETRAIN=("${NETWORK[@]}" --epochs 10 --lr 0.01 --batch-size 16 --milestones 7 9)
    CAM=("${NETWORK[@]}" "${LENGTH[@]}" --lr 0.02 --batch-size 8)
    DRS=("${CAM[@]}" "${CONTROL[@]}")
    REFINE=("${NETWORK[@]}" --epochs 15 --lr 0.001 --batch-size 8 --milestones 10 13)
    INIT="$RUN_DIR/pretrain/last.pth"
    LIST=train_aug VAL=val SCORED=train_aug LABELS=() MAPS=() DEEPLAB=()
fi

# Without masks there is nothing to compare a baseline by.
[ -n "$SCORED" ] || STAGES="${STAGES:-data,drs,maps,refine,labels,deeplab,report}"
STAGES="${STAGES:-$ALL_STAGES}"

COMMON=(--data-root "$DATA_ROOT" --run-dir "$RUN_DIR" "${OVERWRITE[@]}")

# share ARGS...: how many processes a stage may have on each machine. A training's can be no more
# than a batch has images; the result does not depend on their number.
share() {
    local word before="" batch=$((GPUS * NODES))
    for word in "$@"; do
        [ "$before" != --batch-size ] || batch="$word"
        [[ "$word" != SOLVER.BATCH_SIZE=* ]] || batch="${word#*=}"
        before="$word"
    done
    if [[ "$batch" =~ ^[1-9][0-9]*$ ]] && [ "$batch" -lt $((GPUS * NODES)) ]; then
        [ "$batch" -ge "$NODES" ] || fail "$NODES machines cannot share a batch of $batch images"
        echo "$((batch / NODES)) of $GPUS processes a machine: a batch has $batch images" >&2
        echo $((batch / NODES))
    else
        echo "$GPUS"
    fi
}

# together PROCESSES ARGS...: torchrun, on all machines. Each time under a name of its own, so that
# no machine meets one that is elsewhere in the chain.
CALLS=0
together() {
    local processes="$1" meeting=(--standalone)
    CALLS=$((CALLS + 1))
    [ "$NODES" -eq 1 ] || meeting=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$RDZV"
                                   --rdzv-id "drs-$CALLS")
    python -m utils.torchrun "${meeting[@]}" --nproc-per-node "$processes" \
        --max-restarts "$RESTARTS" "${@:2}"
}

# once ARGS...: python, on one of the machines, while the others wait.
once() {
    if [ "$NODES" -gt 1 ]; then together 1 -m utils.once "$@"; else python "$@"; fi
}

# run SCRIPT ARGS...: one stage's script, in as many processes as asked for.
run() {
    printf '\n== %s\n' "$*"
    local processes
    processes="$(share "$@")"
    if [ $((processes * NODES)) -gt 1 ]; then
        together "$processes" "$@"
    else
        python "$@"
    fi
}

# score NAME KIND FOLDER ARGS...: mIoU, precision and recall of a folder of maps or labels, kept for
# the report; a folder that no stage has made is passed over.
SCORES=0
score() {
    [ -d "$RUN_DIR/$3" ] || return 0
    SCORES=$((SCORES + 1))
    printf '\n== scores: %s\n' "$1"
    local command=(evaluate.py "${COMMON[@]}" --list "$SCORED" --name "$1" "--$2-dir" "$RUN_DIR/$3"
                   "${@:4}")
    # It works with threads: one process a machine.
    if [ "$NODES" -gt 1 ]; then together 1 "${command[@]}"; else python "${command[@]}"; fi
}

# baseline NAME OPTIONS...: another classifier than the run's own, and its maps, to compare with.
baseline() {
    run train_drs.py "${COMMON[@]}" "${CAM[@]}" "${@:2}" --init "$INIT" --output-dir "$RUN_DIR/$1"
    run make_localization_maps.py "${COMMON[@]}" --list "$LIST" \
        --checkpoint "$RUN_DIR/$1/best.pth" --output-dir "$RUN_DIR/$1_maps"
}

stage_data() {
    if [ -n "${DEMO_DATA+x}" ]; then
        once -m datasets.synthetic "$DATA_ROOT" "${DEMO_DATA[@]}" "${OVERWRITE[@]}"
    else # better now than after hours of training
        [ -z "$MAKE_SALIENCY" ] || run make_saliency.py "${COMMON[@]}" --list "$LIST"
        run train_drs.py "${COMMON[@]}" "${DRS[@]}" --init "$INIT" --dry-run
    fi
}

stage_cam() { # the baseline that DRS is compared with; in the demo, first the stand-in for ImageNet
    if [ -n "${DEMO_DATA+x}" ]; then
        run train_drs.py "${COMMON[@]}" "${PRETRAIN[@]}" --list single --drs none --init none \
            --output-dir "$RUN_DIR/pretrain"
    fi
    baseline cam --drs none
}

stage_fixed() { # in the large demo: DRS with the constant of the small one
    baseline fixed "${FIXED[@]}"
}

stage_drs() { # step 1: the classifier with DRS modules
    run train_drs.py "${COMMON[@]}" "${DRS[@]}" --init "$INIT"
}

stage_maps() { # its localization maps
    run make_localization_maps.py "${COMMON[@]}" --list "$LIST"
}

stage_refine() { # step 2: the refinement network learns them
    run train_refine.py "${COMMON[@]}" "${REFINE[@]}" --init "$INIT"
}

stage_labels() { # step 3: pseudo labels at the images' own sizes
    run make_pseudo_labels.py "${COMMON[@]}" "${LABELS[@]}" --save-maps "$RUN_DIR/refined_maps"
}

stage_evaluate() { # the only stages that open masks are this and the next two
    [ -n "$SCORED" ] || return 0
    score cam maps cam_maps "${MAPS[@]}"
    score fixed maps fixed_maps "${MAPS[@]}"
    score drs maps localization_maps "${MAPS[@]}"
    score refined maps refined_maps "${MAPS[@]}"
    score pseudo_labels labels pseudo_labels
    [ "$SCORES" -gt 0 ] || fail "$RUN_DIR has neither maps nor labels to score: run the stages before"
}

stage_deeplab() { # DeepLab-V2 trained on the pseudo labels, scored on val without and with CRF
    local main=DeepLab-V2-PyTorch/main.py
    local settings=("${OVERWRITE[@]}" -c "DeepLab-V2-PyTorch/configs/$CONFIG"
                    "DATASET.ROOT=$(realpath "$DATA_ROOT")"
                    "DATASET.LABEL_DIR=$(realpath "$RUN_DIR/pseudo_labels")"
                    "EXP.OUTPUT_DIR=$(realpath -m "$RUN_DIR/deeplab")" "EXP.SEED=$SEED"
                    "${DEEPLAB[@]}")
    run "$main" train "${settings[@]}" "SOLVER.BATCH_SIZE=$(
        sed -n 's/^ *BATCH_SIZE: *\([0-9]*\).*/\1/p' "DeepLab-V2-PyTorch/configs/$CONFIG")"
    if [ -z "$VAL" ]; then # nothing to score on: labels of all images, to look at
        run "$main" predict "${settings[@]}" --input "$DATA_ROOT" \
            --output-dir "$RUN_DIR/deeplab_labels"
        return
    fi
    run "$main" test "${settings[@]}" --save-logits --scores "$RUN_DIR/scores/deeplab.json" \
        --labels-dir "$RUN_DIR/deeplab_labels"
    run "$main" crf "${settings[@]}" --stored-logits --labels-dir "$RUN_DIR/deeplab_crf_labels" \
        --scores "$RUN_DIR/scores/deeplab_crf.json"
}

stage_report() { # the table, the pictures, and the page to explore
    once report.py "${COMMON[@]}" --list "${SCORED:-$LIST}" --val-list "${VAL:-$LIST}"
}

STAGE="" TIMES=""
trap '[ $? -eq 0 ] || echo "error: stage ${STAGE:-set-up} failed; the same command goes on from here" >&2' EXIT
for STAGE in ${STAGES//,/ }; do
    printf '\n### %s\n' "$STAGE"
    start=$SECONDS
    "stage_$STAGE"
    TIMES+="$(printf '%-10s %5d' "$STAGE" $((SECONDS - start)))"$'\n'
done
printf '\nstage    seconds\n%s' "$TIMES"
echo "all output is in $RUN_DIR"
[ ! -f "$RUN_DIR/report.html" ] || echo "to explore it, open $(realpath "$RUN_DIR/report.html")"
