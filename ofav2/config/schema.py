"""Define the schema of a recipe: one frozen dataclass per part, one sentence per field.

A field's sentence names the unit and, where there is one, the value that turns it off. Values are checked where their
meaning is known: ranges in `ofav2.config.ranges`, data sets in `ofav2.data`, architectures in `supernets`, phases in
`ofav2.training.phases`. No network knows a configuration: what builds one unpacks it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ComputeConfig:
    """Where and how a training computes."""

    seed: int = 0
    """Seed from which every random draw of the run is derived, together with phase and step."""
    device: str = "auto"
    """`auto` (CUDA where there is one, else CPU), `cpu`, `cuda`, `cuda:N`, or `mps`, which has not been tested."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of a training step's forward pass: `bfloat16` runs it under autocast. Weights stay float32, and so do
    all measurements, as what is written is float32."""
    tf32: bool = True
    """Whether training steps on CUDA multiply float32 numbers as TF32, which keeps 10 of their 23 bits; all that is
    measured, compared or written is float32 either way. Without effect on the CPU."""
    compile: bool = False
    """Whether torch.compile makes faster forms of what is the same network in every step: the teacher, the full phase's
    largest network, a network that is fine-tuned. It takes time per resolution, and a C++ compiler or CUDA."""
    threads: int = 0
    """CPU threads that torch may use; 0 takes the fastest number, which is measured at the start and kept in the run's
    recipe. On CUDA, 0 leaves torch's own choice."""


@dataclass(frozen=True)
class RunConfig(ComputeConfig):
    """Where and how the run computes, and what it saves."""

    folder: str = "runs"
    """Folder in which run folders are made when the command names none."""
    save_steps: int = 500
    """Training steps between two saved states that a stopped run resumes from; 0 saves by time alone."""
    save_minutes: float = 10.0
    """Minutes between two saved states; 0 saves by steps alone."""
    keep_states: int = 2
    """Newest states that are kept."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split, and how they are cut to a resolution."""

    name: str
    """Name of the data set, one of `ofav2.data.names()`."""
    root: str | None = None
    """Folder that holds the data set; null for one that comes with a package."""
    labels: str | None = None
    """CSV file with the columns path (from `root`), label, and split (train, val or test) if it gives splits; null
    takes the folders for classes."""
    download: bool = False
    """Whether torchvision may download the data set into `root` where it offers that."""
    cache: str | None = None
    """Folder in which a data set of image files is kept decoded, so that files are read and decoded once; null reads
    all of them at each start, and decodes them anew each time they are used."""
    cache_gib: float = 16.0
    """Largest data set, decoded, in GiB, that is kept there; a larger one is streamed from its files."""
    bad_images: Literal["refuse", "skip"] = "refuse"
    """Whether an image ends the command or is left out that cannot be decoded, cannot be rightly labelled, or is gone
    though a run was trained with it."""
    exif_orientation: bool = True
    """Whether images of files are turned upright as their EXIF orientation says; without it they are as stored."""
    shrink_to: int = 0
    """Pixels that the short side of larger images of files is shrunk to as soon as they are decoded, so that large
    photos fit into the cache; twice the largest resolution leaves room for crops; 0 keeps images as they are."""
    resolutions: tuple[int, ...] = (64,)
    """Square image sides in pixels of which each training batch draws one, as a list or a range such as
    `48..64 step 4`; a single one: no elastic resolution."""
    batch_size: int = 64
    """Images per training step."""
    workers: int = 0
    """DataLoader worker processes that decode files; 0, and images that are decoded already: the training process."""
    val_fraction: float = 0.15
    """Share of the training split that is held out for validation, drawn per class, or per place for patches."""
    test_fraction: float = 0.2
    """Share of all images held out as test split, for data sets that come without one; 0 holds none out, and measures
    test on the validation images, which flatters."""
    split_seed: int = 0
    """Seed of the split; kept apart from `run.seed` so that runs with other seeds are evaluated on the same images."""
    balance: Literal["none", "classes"] = "none"
    """How often training draws a class: as often as it has images, or all equally often (`classes`). Images of rare
    classes then repeat within an epoch, and not all images of frequent ones come."""
    crop_scale: tuple[float, float] = (0.85, 1.0)
    """Range of the random crop's area as a share of the image's; (1, 1) with `crop_ratio` (1, 1) turns cropping off."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Range of the random crop's aspect ratio (width over height)."""
    flip: bool = True
    """Whether training images are mirrored left to right with probability one half; patches take one of the eight
    flips and quarter turns."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strengths of random changes of brightness, contrast, saturation and hue (up to 0.5), as torchvision's
    ColorJitter; zeros turn it off."""
    randaugment: tuple[int, int] = (0, 9)
    """RandAugment: operations per image, and their magnitude in 0..30; 0 operations turn it off."""
    mixup: float = 0.0
    """Alpha of mixup; 0 turns it off. With cutmix, each batch draws one of the two."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 turns it off."""
    eval_crop: float = 0.875
    """Share of the resized image's side that evaluation's centre crop keeps; 1 turns the crop off."""
    mean: tuple[float, ...] | None = None
    """Means of the bands to normalise with, of pictures in 0..1; null takes the data set's own, and measures those of
    patches on the training split."""
    std: tuple[float, ...] | None = None
    """Standard deviations of the bands to normalise with, likewise."""
    bands: tuple[str, ...] | None = None
    """Which bands of patches to take, by name and in this order; null takes all."""
    target: str | None = None
    """Which target of patches to learn, by name; null for data with a single one. `none` takes patches without
    targets."""
    classes: tuple[str, ...] | None = None
    """Which classes of the patches' target to learn, in this order; others are left out. Null takes all."""
    window: int | None = None
    """Side in pixels of windows that patches are divided into, each classified as the class that most of its pixels
    have; null leaves patches and their targets as they are."""
    window_share: float = 0.6
    """Share of a window's pixels that its class must have; other windows are left out."""
    shots: int | None = None
    """How many training images to keep, drawn by `split_seed`: of each class, or patches where targets are planes. More
    shots include fewer ones; null keeps all."""


@dataclass(frozen=True)
class NetworkConfig:
    """What is trained: a supernet, or a network of timm with early exits (AEP)."""

    kind: Literal["supernet", "timm"] = "supernet"
    """`supernet`, described in `supernet`; `timm`, described here."""
    name: str | None = None
    """Name of the network in timm, with a weights tag if it is to have one; null for a supernet."""
    exits: Any = "stages"
    """Where exits are attached: `stages`, shares of the multiply-adds such as [0.25, 0.5], or numbers of timm's
    features such as [2, 3]; the network's own head is the last exit in any case."""
    head: Literal["norm_linear", "linear", "relu_linear", "mobilenetv3", "efficientnet"] = "norm_linear"
    """Heads of the attached exits: a linear layer behind a layer norm, or AEP's heads for ResNet and VGG (`linear`),
    DenseNet (`relu_linear`), MobileNetV3 and EfficientNet."""
    weights: str | None = None
    """Pretrained weights to start from: `timm` for timm's own, or a .safetensors or .pth file; null starts anew."""
    drop_rate: float = 0.0
    """Dropout probability in the network's own head; 0 turns it off. That of attached exits is the phase's."""


@dataclass(frozen=True)
class SupernetConfig:
    """Which supernet, and what may be chosen in it."""

    variant: str = "ee_d"
    """Name of the supernet, one of `supernets.names()`."""
    width_mult: float = 1.0
    """Width multiplier of all channel counts."""
    kernel: tuple[int, ...] = (3, 5, 7)
    """Kernel sizes that a block may have, odd."""
    expand: tuple[int, ...] = (3, 4, 6)
    """Expansion ratios that a block may have."""
    depth: tuple[int, ...] = (2, 3, 4)
    """Numbers of blocks that a stage may have."""
    stem_stride: int = 2
    """Stride of the first convolution: 2 as in the paper, 1 for images of about 32 pixels or less."""
    keep: tuple[Literal["mbconv", "conv", "transform"], ...] = ()
    """Parallel branches that every block keeps, such as [mbconv]; the level phases switch off others only."""
    head_width: int = 32
    """Channels inside dense heads, which tasks have whose outputs are maps; others have no use for it."""
    init: str | None = None
    """Run folder of which the supernet's weights are taken to start from, such as one of task `reconstruct`; heads for
    other outputs start anew. It may not have learnt targets of this run's test images. Null starts all anew."""
    frozen: bool = False
    """Whether the weights from `init` stay as they are up to the heads, which alone are trained."""


@dataclass(frozen=True)
class UnlockConfig:
    """The choices of each dimension that may be drawn from a phase on; an empty list leaves the dimension as it was."""

    kernel: tuple[int, ...] = ()
    """Kernel sizes."""
    level: tuple[int, ...] = ()
    """Numbers of active parallel branches per block."""
    height: tuple[int, ...] = ()
    """Exits (1 is the first) at which a network may end."""
    depth: tuple[int, ...] = ()
    """Numbers of blocks per stage."""
    expand: tuple[int, ...] = ()
    """Expansion ratios."""


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of progressive shrinking; the mapping's order is the order in which phases run."""

    epochs: float
    """Length in epochs over the training split; fractions are allowed."""
    lr: float
    """Peak learning rate."""
    unlock: UnlockConfig = field(default_factory=UnlockConfig)
    """What the phase unlocks; nothing: the largest network is trained with all its exits jointly (the full phase)."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from zero at the start; 0 turns it off."""
    objective: Literal["joint", "distill", "distill_exits", "in_place"] | None = None
    """What a step minimises: `joint`, all exits of each sub-network together, without teacher; `distill`, each
    sub-network's own exit, with the teacher; `distill_exits`, all unlocked exits of each at once, with the teacher;
    `in_place`, the same, taught by the step's largest network, which learns from the labels (needs `sampler:
    sandwich`). Null takes joint while there is one network to train, then distill."""
    subnets: int = 1
    """Sub-networks per step whose gradients are summed."""
    sampler: Literal["uniform", "sandwich", "marginals"] = "uniform"
    """How a step's sub-networks are drawn: all at random; the largest, the smallest and random ones; or with choices as
    frequent as in `networks`, where the phase may unlock nothing."""
    networks: tuple[str, ...] = ()
    """Sub-networks for `sampler: marginals`, each as JSON; `ofav2 search --adapt` takes those of its front."""
    teacher: str | None = None
    """Teacher policy of this phase, as in `teacher.policy`; null takes that one."""
    dropout: float = 0.1
    """Dropout probability before each exit's classifier; 0 turns it off."""
    exit_weights: Any | None = None
    """Exit weights of this phase, as in `teacher.exit_weights`; null takes those, and even ones for the losses of
    `distill_exits` and `in_place`."""
    patience: int = 0
    """Validations in a row without a lower joint loss after which the phase ends (AEP), for networks with exits; 0
    trains to the end."""


@dataclass(frozen=True)
class TeacherConfig:
    """Distillation: exit weights, teacher, student loss."""

    policy: str = "progressive"
    """`fixed`, `progressive`, `best`, `none`, or an external teacher as `timm:NAME`."""
    checkpoint: str | None = None
    """Weights of the external teacher: a .safetensors or .pth file, or the folder of a network that `ofav2 finetune
    timm:NAME` made; null takes timm's pretrained weights."""
    mean: tuple[float, ...] | None = None
    """Channel means (in 0..1) that the images of a `checkpoint` file were normalised with, which has to be given with
    it; null for a folder and for timm's own weights, which say theirs. Images are rescaled to it in front of the
    teacher."""
    std: tuple[float, ...] | None = None
    """Channel standard deviations (in 0..1), likewise."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of the teacher's forward pass, as in `run.precision`, which null takes; its target is float32."""
    exit_weights: Any = "ascending"
    """`ascending`, `descending`, `mixed`, `uniform`, `last`, `ascending_paper`, or one number per exit; weighs the
    joint loss and the ensemble."""
    distance: Literal["cross_entropy", "mse"] = "cross_entropy"
    """Distance of the student's output to the teacher's: soft cross-entropy, or mean squared error of logits."""
    kd_ratio: float = 1.0
    """Weight of that distance beside the cross-entropy with the labels; 0 turns distillation off."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser that every phase starts anew."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum, or AdamW."""
    momentum: float = 0.9
    """Momentum of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Moment decay rates of AdamW."""
    weight_decay: float = 3e-5
    """Weight decay on weights; batch norms and biases have none."""
    label_smoothing: float = 0.1
    """Share of the label's probability spread over all classes; 0 turns it off."""
    class_weights: Literal["none", "log"] = "none"
    """How much a class's images or pixels weigh in the loss: all alike, or those of rare classes more (`log`): a class
    with share p of the training targets weighs in proportion to 1 / ln(1.02 + p) (ENet, section 5)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up: down to zero as half a cosine, or as it is."""
    grad_clip: float = 0.0
    """Largest allowed norm of the gradient; 0 turns clipping off."""
    loss_jump: float = 0.0
    """A batch whose loss is over so many times the usual one is skipped; 0 skips only what is not finite."""
    skip_limit: int = 3
    """Batches of a phase that may be skipped because their loss is unusable; one more stops the run."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How sub-networks are evaluated."""

    every_epochs: float = 1.0
    """Epochs between two validations inside a phase; 0 validates only at its end."""
    batch_size: int = 200
    """Images per batch of evaluation."""
    calibration_images: int = 2000
    """Training images from which a sub-network's batch-norm statistics are gathered before it is evaluated."""
    calibration_batch: int = 100
    """Images per batch of that recalibration."""
    corners: Literal["all", "ends", "none"] = "all"
    """Corner sub-networks that are evaluated after each phase and at the end: all, the largest and the smallest
    (`ends`), or none after phases and `ends` at the end."""


@dataclass(frozen=True)
class TrackingConfig:
    """What is logged where; `metrics.jsonl` in the run folder is always written."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    """W&B: off, written to the run folder for a later `wandb sync`, or live."""
    project: str = "ofav2"
    """W&B project."""
    entity: str | None = None
    """W&B entity (user or team); null takes the account's default."""
    tags: tuple[str, ...] = ()
    """W&B tags."""
    artifacts: bool = False
    """Whether each phase's checkpoint is uploaded as a W&B artifact."""
    tensorboard: bool = False
    """Whether measurements are also written for TensorBoard, which must be installed, into `tensorboard` in the run
    folder."""
    every_steps: int = 10
    """Training steps between two logged lines."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How an extracted network is trained on: first to find the number of epochs, then with all images."""

    lr: float
    """Peak learning rate; it falls to zero as half a cosine over `epochs`, in both trainings. By default that of the
    run's last phase; of timm's networks 0.0003, with fresh weights 0.002."""
    epochs: int = 30
    """Epochs of the first training, of which the best one on validation is looked for."""
    patience: int = 10
    """Epochs of worse validation than the best, in a row, after which the first training ends; 0 trains all."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from zero at the start; 0 turns it off."""
    dropout: float = 0.0
    """Dropout probability before each exit's classifier; 0 turns it off."""
    exit_weights: Any = "ascending"
    """`ascending`, `descending`, `mixed`, `uniform`, `last`, `ascending_paper`, or one number per exit; weighs the
    exits' losses and their ensemble."""
    eval_batch_size: int = 200
    """Images per batch of evaluation; by default the run's `evaluation.batch_size`."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole recipe, in the order in which recipes are written."""

    task: str = "classification"
    """What is learnt: `classification`, `segment`, `regress`, `reconstruct`, or a task that an installed package brings
    (`ofav2.tasks.registry`)."""
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig
    network: NetworkConfig = field(default_factory=NetworkConfig)
    supernet: SupernetConfig = field(default_factory=SupernetConfig)
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """The settings of a fine-tuning, in the order in which they are written."""

    task: str = "classification"
    """What is learnt, as in `Config`."""
    run: ComputeConfig
    data: DataConfig
    finetune: FinetuneConfig
    optim: OptimConfig
