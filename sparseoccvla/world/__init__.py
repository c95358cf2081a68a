"""The procedural driving world: roads, traffic and weather, seen by six ray-cast cameras. No ROS.

The API, bottom up; everything is deterministic in the seed:

    scene = Scene.make(seed=3, city="rightville")           # what exists; "leftville" drives on the left
    drive = rollout(scene, duration_s=20.0)                 # what happens: an expert drives, traffic moves
    rig = CameraRig.nuscenes_like()                         # six cameras named as contracts.CAMERA_NAMES
    camera = rig["cam_front"]                               # .offset_ns: its stamp minus the nominal time
    renderer = Renderer(scene)                              # for many pictures; device="cuda" works too
    image = renderer.render(drive, camera, t_ns + camera.offset_ns, size=(704, 396))
    image = render(scene, drive, camera, stamp_ns, size)    # the same for one picture
    image.rgb, image.class_ids, image.depth_m, image.instance_ids  # HxWx3 u8, HxW u8, HxW f32, HxW i32
    camera.calibration((704, 396))                          # contracts.CameraCalibration of that size

    drive.stamps_ns, drive.speed_mps, ...                   # ego samples every 1/20 s; see `Drive`
    drive.ego_at(t_ns)                                      # EgoSample: world_from_base 4x4, speed, ...
    drive.command_at(t_ns)                                  # contracts.Command; its source is "route"
    drive.boxes_at(t_ns)                                    # every annotated agent: Box, in the world frame

    labeler = labels.Labeler(scene, rig)                    # for many keyframes, like the renderer
    around = labeler.lidar.turn(drive, t_ns)                # .points (N, 5): x, y, z, intensity, ring
    label = labeler.occupancy(drive, t_ns, images, around)  # .semantics, .mask_camera, .mask_lidar of Occ3D
    visibility.Onlooker(drive, scene.stage, rig).shares(images.values())  # by instance; see `visibility`

    scene, drive = edits.apply(scene, drive, Edit.parse("remove=pedestrian-0"))  # all else stays
    Cameras(renderer, CameraEffects(noise=4)).picture(drive, "cam_front", stamp_ns, size)  # see `effects`

    world = World(size=(352, 128))                          # closed loop; see `world`
    seen = world.reset(seed=3, city="leftville")            # pictures, calibration, EgoState, command at t0
    outcome = world.step(plan)                              # (6, 3) in base_link at seen.t0_ns: 0.5 s of it
    outcome.reason, outcome.collision, outcome.progress_m   # "" while the drive goes on
    seen = world.observe()
    world.expert_plan(), world.step_expert()                # what the expert would do, and the expert driving

Frames: `world` is a fixed frame with z up; `base_link` is the rear-axle center on the ground, x forward.
Sizes are (width, height) in pixels. Depth is along the optical axis in meters, `inf` in the sky, whose class
is 17 (free).
"""

from sparseoccvla.world.cameras import CameraRig, RigCamera
from sparseoccvla.world.drive import Box, Drive, EgoSample, Event
from sparseoccvla.world.edits import Edit
from sparseoccvla.world.effects import CameraEffects, Cameras
from sparseoccvla.world.render import CameraImage, Renderer, render
from sparseoccvla.world.rollout import rollout
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.world import Observation, Outcome, World

__all__ = [
    "Box",
    "CameraEffects",
    "CameraImage",
    "CameraRig",
    "Cameras",
    "Drive",
    "Edit",
    "EgoSample",
    "Event",
    "Observation",
    "Outcome",
    "Renderer",
    "RigCamera",
    "Scene",
    "World",
    "render",
    "rollout",
]
