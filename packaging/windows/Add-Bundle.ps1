<#
.SYNOPSIS
    Passes an app's bundle to refit-agent and makes its engines ready, with progress.
.DESCRIPTION
    Registers the bundle with the service, which from then on keeps its engines ready after a new driver or GPU, and
    provisions it. Without a service the engines are made all the same. Ctrl+C stops; what is ready stays ready, and
    the next call goes on from there.
.PARAMETER Bundle
    The bundle's folder, with bundle.json in it.
.PARAMETER Folder
    The agent's folder. By default the folder above that of this script.
.PARAMETER DeadlineSeconds
    The longest time that this may take. What is not ready by then is made at the app's first launch.
.PARAMETER PublicKey
    Take the bundle only if one of these keys signed it, as 'ed25519:...'.
.PARAMETER NoService
    Do not register the bundle with the service.
.EXAMPLE
    powershell.exe -NoProfile -ExecutionPolicy Bypass -File Add-Bundle.ps1 -Bundle "C:\Program Files\Photo\bundle"
.OUTPUTS
    Exit codes: those of 'refit-agent provision'; 2 also for a wrong folder, 1 if it cannot be started.
.NOTES
    For Windows PowerShell 5.1 and later. Parsed by the tests; not run on Windows yet.
    The lines that are read here are described in packaging/installer/README.md, protocol 1.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true, Position = 0)]
    [ValidateNotNullOrEmpty()]
    [string] $Bundle,

    [ValidateNotNullOrEmpty()]
    [string] $Folder = (Split-Path -Parent $PSScriptRoot),

    [ValidateRange(1, 86400)]
    [int] $DeadlineSeconds = 600,

    [ValidatePattern('^ed25519:[A-Za-z0-9+/=_-]+$')]
    [string[]] $PublicKey = @(),

    [switch] $NoService
)
Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'

function Get-Field {
    <#
    .SYNOPSIS
        A field of an object that came from JSON; nothing where there is none, which strict mode would not forgive.
    #>
    [CmdletBinding()]
    param(
        [Parameter(Mandatory = $true)]
        $From,
        [Parameter(Mandatory = $true)]
        [string] $Name
    )
    $property = $From.PSObject.Properties[$Name]
    if ($property) {
        $property.Value
    }
}

function Show-ProvisionEvent {
    <#
    .SYNOPSIS
        Shows one line of 'provision --progress=json'. What is not understood is passed over, as the protocol asks.
    #>
    [CmdletBinding()]
    param(
        [Parameter(Mandatory = $true)]
        [AllowEmptyString()]
        [string] $Line
    )
    try {
        $said = $Line | ConvertFrom-Json
        $kind = Get-Field -From $said -Name 'event'
    }
    catch {
        Write-Verbose "Not a line of the protocol: $Line"
        return
    }
    if ($kind -eq 'progress') {
        $shown = @{
            Activity        = 'Preparing for this computer'
            Status          = [string] (Get-Field -From $said -Name 'text')
            PercentComplete = [int] [Math]::Max(0, [Math]::Min(100, [double] (Get-Field -From $said -Name 'percent')))
        }
        $eta = Get-Field -From $said -Name 'eta_s'
        if ($null -ne $eta) {
            $shown['SecondsRemaining'] = [int] [Math]::Ceiling([double] $eta)
        }
        $model = Get-Field -From $said -Name 'model'
        if ($model) {
            $shown['CurrentOperation'] = [string] $model
        }
        Write-Progress @shown
    }
    elseif ($kind -eq 'result') {
        Write-Progress -Activity 'Preparing for this computer' -Completed
        $fault = Get-Field -From $said -Name 'error'
        if ($fault) {
            [Console]::Error.WriteLine("refit-agent: $(Get-Field -From $fault -Name 'message')")
        }
    }
}

try {
    Import-Module (Join-Path $PSScriptRoot 'RefitAgent.psm1') -Force
    $root = Resolve-RefitAgentFolder -Folder $Folder
    $place = (Resolve-Path -LiteralPath $Bundle).ProviderPath
    if (-not (Test-Path -LiteralPath (Join-Path $place 'bundle.json') -PathType Leaf)) {
        throw "$place is not a bundle: it has no bundle.json."
    }
}
catch {
    [Console]::Error.WriteLine("refit-agent: $_")
    exit 2
}

$keys = @(foreach ($key in $PublicKey) { '--public-key'; $key })
try {
    if (-not $NoService) {
        $code = Invoke-RefitAgent -Folder $root -ArgumentList (@('register', $place) + $keys)
        if ($code -eq $ExitService) {
            Write-Verbose 'There is no service; the engines are made without it.'
        }
        elseif ($code -ne 0) {
            exit $code
        }
    }
    $wish = @('provision', $place, '--progress=json', '--deadline', [string] $DeadlineSeconds) + $keys
    $code = Invoke-RefitAgent -Folder $root -ArgumentList $wish -OnLine { param($line) Show-ProvisionEvent -Line $line }
}
catch {
    [Console]::Error.WriteLine("refit-agent: it cannot be started: $_")
    exit 1
}
if ($code -eq 0) {
    Write-Output 'The engines are ready.'
}
exit $code
