"""Import satellite images: write the folder of `data.name=patches` from GeoTIFFs, MajorTOM and PhilEO Bench."""
