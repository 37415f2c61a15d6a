// The page that viewer.py fills: one scene, orbit with the mouse, no network.
// Built with esbuild into bundle.js: see viewer.py.
import * as THREE from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { SparkRenderer, SplatFileType, SplatMesh } from "@sparkjsdev/spark";

const scene = new THREE.Scene();
const settings = JSON.parse(document.getElementById("settings").textContent);
scene.background = new THREE.Color(...settings.background);
const renderer = new THREE.WebGLRenderer({ antialias: false, preserveDrawingBuffer: true });
document.body.append(renderer.domElement);
const camera = new THREE.PerspectiveCamera(settings.fov, 1, settings.near, settings.far);
camera.up.set(...settings.up);
camera.position.set(...settings.position);
const controls = new OrbitControls(camera, renderer.domElement);
controls.target.set(...settings.target);
controls.enableDamping = true;
scene.add(new SparkRenderer({ renderer }));

function resize() {
  renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
  renderer.setSize(window.innerWidth, window.innerHeight);
  camera.aspect = window.innerWidth / window.innerHeight;
  camera.updateProjectionMatrix();
}
window.addEventListener("resize", resize);
resize();

const base64 = document.getElementById("splats").textContent.trim();
const fileBytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const mesh = new SplatMesh({ fileBytes, fileType: SplatFileType.SPZ });
scene.add(mesh);
mesh.initialized
  .then(() => {
    document.body.dataset.splats = String(mesh.splats.getNumSplats());
  })
  .catch((error) => {
    document.getElementById("note").textContent = `The splats cannot be shown: ${error}`;
  });
renderer.setAnimationLoop(() => {
  controls.update();
  renderer.render(scene, camera);
});
