"""A network over a scan: the head cropped, the volume tiled, a mask on the scan's own grid."""
